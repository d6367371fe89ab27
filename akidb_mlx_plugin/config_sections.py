"""The sections of the configuration, each a frozen schema that validates its values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from akidb_mlx_plugin.durations import parse_duration
from akidb_mlx_plugin.pooling_names import join_pooling
from akidb_mlx_plugin.types import Overflow

Device = Literal["auto", "gpu", "cpu"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# A name of the registry.
DEFAULT_MODEL = "qwen3-0.6b-4bit"


def _to_path(value: Any) -> Any:
    return Path(os.path.expanduser(value)) if isinstance(value, str | Path) and str(value) else value


def _to_name(value: Any) -> Any:
    # A Path always means a folder, but as the bare string "bert/model" it would name a repository on the hub.
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value


def _to_pooling(value: Any) -> Any:
    return None if value is None else join_pooling(value)


def _to_url(value: Any) -> Any:
    """Check a server's address; other types are left for the schema to refuse."""
    if not isinstance(value, str):
        return value
    parts = urlsplit(value)
    is_socket = parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/")
    if not is_socket and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ValueError("a server's address is http://HOST:PORT, https://HOST or unix:///PATH/TO/SOCKET")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("a server's address has no user, query or fragment; a token goes into remote.token")
    _ = parts.port
    return value.rstrip("/")


def _default_cache_dir() -> Path:
    return Path(os.path.expanduser("~/.cache/akidb/models"))


class _Section(BaseModel):
    # Strict: YAML and JSON have their own types, and `batch_size: true` is a mistake, not 1.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MLXConfig(_Section):
    """The section `mlx`.

    Attributes:
        model: a short name, a Hugging Face repository, or a checkpoint folder.
        dimension: length of the vectors; defaults to the model's.
        cache_dir: folder of downloaded models.
        max_cache_gb: size limit of the cache.
        batch_size: most texts merged into one batch.
        batch_timeout_ms: how long running work may delay a request that waits for its batch. An idle service starts
            at once; while requests arrive from several callers, large ones run in slices of this length.
        normalize: scale vectors to unit length; defaults to the checkpoint's setting.
        pooling: such as "mean" or "cls+mean"; defaults to the setting of the checkpoint, registry or architecture.
        overflow: what happens to a text that is longer than the model takes: it is cut and counted ("truncate"), or
            refused before anything is embedded ("error").
        device: "gpu" or "cpu"; "auto" uses a GPU if there is one.
        dtype: dtype of the weights; "auto" is float32 on a CPU, bfloat16 or the stored dtype on a GPU.
        keep_warm_s: how long after each text to keep a GPU awake by computing a little every five seconds; a GPU that
            has rested answers its next query tens of milliseconds later. 0 for not at all.
        query_prompt: text prepended to a query; defaults to the model's.
        document_prompt: text prepended to a document; defaults to the model's.
        query_task: name of the model's prompt to use for queries, such as "clustering".
        document_task: name of the model's prompt to use for documents.
        keep_alive: seconds that the weights stay in memory after the last text, or "5m"; the next text loads them
            again. 0 frees them at once; -1 keeps them.
    """

    model: Annotated[str, BeforeValidator(_to_name)] = Field(default=DEFAULT_MODEL, min_length=1)
    dimension: int | None = Field(default=None, ge=1)
    cache_dir: Annotated[Path, BeforeValidator(_to_path)] = Field(default_factory=_default_cache_dir)
    max_cache_gb: float = Field(default=10, gt=0)
    batch_size: int = Field(default=10, ge=1, le=4096)
    batch_timeout_ms: float = Field(default=50, ge=0, le=60_000)
    normalize: bool | None = None
    pooling: Annotated[str | None, BeforeValidator(_to_pooling)] = None
    overflow: Overflow = "truncate"
    device: Device = "auto"
    dtype: Dtype = "auto"
    keep_warm_s: float = Field(default=0, ge=0, le=86_400)
    query_prompt: str | None = None
    document_prompt: str | None = None
    query_task: str | None = Field(default=None, min_length=1)
    document_task: str | None = Field(default=None, min_length=1)
    keep_alive: Annotated[float, BeforeValidator(parse_duration)] = -1.0


class MockConfig(_Section):
    """The section `mock`.

    Attributes:
        dimension: length of the vectors.
    """

    dimension: int = Field(default=384, ge=1)


class UserProvidedConfig(_Section):
    """The section `user_provided`.

    Attributes:
        dimension: length of the user's vectors; None if unknown.
        model: the user's name for the model that made them.
    """

    dimension: int | None = Field(default=None, ge=1)
    model: str | None = Field(default=None, min_length=1)


class ServiceConfig(_Section):
    """The section `service`.

    Attributes:
        queue_size: most waiting texts, counted separately for small and large requests; further ones are rejected.
        deadline_ms: time limit of a request of up to `batch_size` texts; for a larger one it is multiplied by its
            number of batches. None for no limit.
    """

    queue_size: int = Field(default=10_000, ge=1)
    deadline_ms: float | None = Field(default=600_000, gt=0)


class RemoteConfig(_Section):
    """The section `remote`.

    Attributes:
        url: a server started by `akidb-mlx serve`, http://HOST:PORT or unix:///PATH; None computes in this process.
        token: what the server expects, if it expects one.
        timeout_ms: time limit of one call to the server, retries included.
        fallback: what happens when the server cannot be reached: the model is loaded in this process ("local"), or
            the call fails ("error").
    """

    url: Annotated[str | None, BeforeValidator(_to_url)] = None
    token: SecretStr | None = None
    timeout_ms: float = Field(default=60_000, gt=0)
    fallback: Literal["local", "error"] = "error"
