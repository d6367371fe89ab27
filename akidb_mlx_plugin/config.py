"""The configuration: defaults, a YAML file, the environment, arguments; each overrides the one before it.

Read and validated once, by `EmbeddingConfig.load`; frozen and hashable afterwards.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from akidb_mlx_plugin.argument_names import right_name
from akidb_mlx_plugin.config_sections import DEFAULT_MODEL as DEFAULT_MODEL
from akidb_mlx_plugin.config_sections import Device as Device
from akidb_mlx_plugin.config_sections import Dtype as Dtype
from akidb_mlx_plugin.config_sections import MLXConfig as MLXConfig
from akidb_mlx_plugin.config_sections import MockConfig, RemoteConfig, ServiceConfig, UserProvidedConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.types import Overflow

Mode = Literal["mlx", "user_provided", "mock"]

ENVIRONMENT_PREFIX = "AKIDB_EMBEDDING__"
_CACHE_VARIABLE = "AKIDB_MODEL_CACHE_DIR"

# Aliases let a few lines of YAML stand for more than memory holds, which a message must not spell out.
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 200
_LONGEST_KEY = 100

# A value by its dotted key, with its source.
Layer: TypeAlias = dict[str, tuple[Any, str]]


class EmbeddingConfig(BaseModel):
    """The configuration of an embedding service.

    The constructor validates but reads neither a file nor the environment; `load` does.

    Attributes:
        mode: source of the vectors: a model on MLX, the user, or a deterministic mock for tests.
        mlx: the model and how it runs.
        mock: used in mode "mock".
        user_provided: used in mode "user_provided".
        service: the queue in front of the model.
        remote: a server that computes the vectors of mode "mlx" in place of this process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "mlx"
    mlx: MLXConfig = Field(default_factory=MLXConfig)
    mock: MockConfig = Field(default_factory=MockConfig)
    user_provided: UserProvidedConfig = Field(default_factory=UserProvidedConfig)
    service: ServiceConfig = Field(default_factory=ServiceConfig)
    remote: RemoteConfig = Field(default_factory=RemoteConfig)

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> EmbeddingConfig:
        """Return the effective configuration.

        Args:
            path: a YAML file with the top-level key `embedding`; None for no file.
            overrides: values that override everything else, nested as in the file.
        Raises:
            InvalidInputError: no such file, invalid YAML, or in any source an unknown key, a wrong type or a value out
                of range.
        """
        return load_with_origins(path, overrides)[0]

    @classmethod
    def from_arguments(
        cls,
        model: str | Path | None = None,
        *,
        mode: Mode | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        pooling: str | Sequence[str] | None = None,
        device: Device | None = None,
        overflow: Overflow | None = None,
        cache_dir: str | Path | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        query_task: str | None = None,
        document_task: str | None = None,
    ) -> EmbeddingConfig:
        """Return the configuration with a few values given; None for the environment's value or the default.

        `model` and `dimension` go to the section of the effective mode.
        """
        mode = cls.load(overrides={"mode": mode} if mode else {}).mode
        mlx: dict[str, Any] = {"normalize": normalize, "pooling": pooling, "device": device, "cache_dir": cache_dir}
        mlx |= {"query_prompt": query_prompt, "document_prompt": document_prompt}
        mlx |= {"query_task": query_task, "document_task": document_task, "overflow": overflow}
        sections: dict[str, dict[str, Any]] = {"mlx": mlx, "mock": {}, "user_provided": {}}
        sections["user_provided" if mode == "user_provided" else "mlx"]["model"] = model
        sections[mode]["dimension"] = dimension
        given = {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in sections.items()
        }
        return cls.load(overrides={"mode": mode, **given})


_SECTIONS: dict[str, type[BaseModel]] = {
    "mlx": MLXConfig,
    "mock": MockConfig,
    "user_provided": UserProvidedConfig,
    "service": ServiceConfig,
    "remote": RemoteConfig,
}
_KEYS = ("mode", *(f"{section}.{name}" for section, schema in _SECTIONS.items() for name in schema.model_fields))
# Taken literally from the environment, unlike other values, which are parsed as YAML: a prompt may end in a colon.
_TEXT_KEYS = {
    "mode",
    "mlx.model",
    "mlx.cache_dir",
    "mlx.overflow",
    "mlx.device",
    "mlx.dtype",
    "mlx.query_task",
    "mlx.document_task",
    "mlx.query_prompt",
    "mlx.document_prompt",
    "user_provided.model",
    "remote.url",
    "remote.token",
    "remote.fallback",
}
# Never shown, not even in the message about a wrong value.
_SECRET_KEYS = {"remote.token"}


def load_with_origins(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[EmbeddingConfig, dict[str, str]]:
    """Return the effective configuration, and the source of every dotted key's value."""
    layers = {
        **(_read_file(Path(path)) if path is not None else {}),
        **_read_environment(os.environ),
        **_flatten(overrides or {}, "argument"),
    }
    nested: dict[str, Any] = {}
    for key, (value, _) in layers.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    try:
        config = EmbeddingConfig.model_validate(nested)
    except ValidationError as error:
        raise InvalidInputError("; ".join(_explain(fault, layers) for fault in error.errors())) from error
    return config, {key: layers[key][1] if key in layers else "default" for key in _KEYS}


def flatten_config(config: EmbeddingConfig) -> dict[str, Any]:
    """Return the values of a configuration by dotted key, in schema order; a secret is masked."""
    values = {key: attrgetter(key)(config) for key in _KEYS}
    return {key: str(value) if isinstance(value, SecretStr) else value for key, value in values.items()}


def _read_file(path: Path) -> Layer:
    path = Path(os.path.expanduser(path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInputError(f"no configuration file at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the configuration file {path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: an invalid date.
        raise InvalidInputError(f"the configuration file {path} is not YAML: {error}") from error
    if not isinstance(content, Mapping) or not content:
        raise InvalidInputError(
            f"the configuration file {path} must have the key 'embedding', but has {_SHORT.repr(content)}"
        )
    if unknown := [key for key in content if key != "embedding"]:
        raise InvalidInputError(
            f"unknown key {_SHORT.repr(unknown[0])} (file {path}); all settings go under 'embedding'"
        )
    return _flatten(content["embedding"], f"file {path}")


def _read_environment(environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    if folder := environment.get(_CACHE_VARIABLE, "").strip():
        layer["mlx.cache_dir"] = (folder, f"environment {_CACHE_VARIABLE}")
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        origin = f"environment {variable}"
        if key not in _KEYS:
            raise InvalidInputError(f"unknown key {_SHORT.repr(key)} ({origin}){_suggest(key)}")
        layer[key] = (_parse_variable(key, text), origin)
    return layer


def _parse_variable(key: str, text: str) -> Any:
    if key in _TEXT_KEYS:
        return None if text == "null" else text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _flatten(nested: Any, origin: str) -> Layer:
    """Flatten sections to dotted keys; a null section, as with all its keys commented out, is empty."""
    layer: Layer = {}
    for name, value in _items(nested, "embedding", origin):
        if name in _SECTIONS:
            layer.update({f"{name}.{key}": (inner, origin) for key, inner in _items(value, name, origin)})
        elif name == "mode":
            layer[name] = (value, origin)
        else:
            raise InvalidInputError(
                f"unknown key {_SHORT.repr(name)} = {_SHORT.repr(value)} ({origin}){_suggest(name)}"
            )
    for key, (value, _) in layer.items():
        if key not in _KEYS:
            raise InvalidInputError(f"unknown key {_SHORT.repr(key)} = {_SHORT.repr(value)} ({origin}){_suggest(key)}")
    return layer


def _items(value: Any, name: str, origin: str) -> list[tuple[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping of keys to values, got {_SHORT.repr(value)} ({origin})")
    return [(str(key), inner) for key, inner in value.items()]


def _suggest(key: str) -> str:
    section, _, name = key.rpartition(".")
    section = section or "mlx"
    if section in _SECTIONS and (right := right_name(name, _SECTIONS[section].model_fields)):
        return f"; it is {section}.{right}"
    close = difflib.get_close_matches(key[:_LONGEST_KEY], _KEYS, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(_KEYS)}"


def _explain(fault: Any, layers: Layer) -> str:
    key = ".".join(str(part) for part in fault["loc"][:2])
    value, origin = layers.get(key, (fault["input"], "default"))
    shown = "**********" if key in _SECRET_KEYS else _SHORT.repr(value)
    hint = "; a graphics processor of any kind is 'gpu'" if key.endswith("device") else ""
    return f"{key} = {shown} ({origin}): {fault['msg'][:1].lower()}{fault['msg'][1:]}{hint}"
