"""From a model's name to its checkpoint on disk and its description, without loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.cross_encoder import (
    CrossEncoderCheckpoint,
    check_cross_encoder,
    read_cross_encoder,
)
from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.checkpoints.reader import check_settings, read_checkpoint
from akidb_mlx_plugin.checkpoints.rerankers import is_reranker
from akidb_mlx_plugin.checkpoints.sentence_transformers import read_json
from akidb_mlx_plugin.errors import EmbeddingError, ModelNotFoundError
from akidb_mlx_plugin.hub import models as hub
from akidb_mlx_plugin.hub.registry import ModelKind, list_models, resolve
from akidb_mlx_plugin.types import ModelInfo

_DEFAULTS = LoadOptions()
Found = TypeVar("Found", bound=Checkpoint)


def find_checkpoint(model: str | Path, options: LoadOptions = _DEFAULTS) -> Checkpoint:
    """Find a model, downloading it if needed, and read its settings.

    Args:
        model: a short name, "org/repo", or a checkpoint folder.
        options: where it is kept, whether it may be downloaded, and its pooling.
    Raises:
        As `ensure_model` and `read_checkpoint`.
    """
    _check_kind(model, "embedding")
    return _find(model, options, check_settings, partial(read_checkpoint, pooling=options.pooling))


def find_cross_encoder(
    model: str | Path, options: LoadOptions = _DEFAULTS, *, activation: str | None = None
) -> CrossEncoderCheckpoint:
    """Find a reranker, downloading it if needed, and read its settings.

    Args:
        model, options: as for `find_checkpoint`.
        activation: as for `read_cross_encoder`.
    Raises:
        As `ensure_model` and `read_cross_encoder`.
    """
    _check_kind(model, "reranker")
    return _find(model, options, check_cross_encoder, partial(read_cross_encoder, activation=activation))


def _check_kind(model: str | Path, kind: ModelKind) -> None:
    """Raise ModelNotFoundError, before any download, for a model that the registry knows as another kind."""
    spec = resolve(model).spec
    if spec is None or spec.kind == kind:
        return
    others = ", ".join(other.name for other in list_models(kind))
    use = "CrossEncoder" if spec.kind == "reranker" else "EmbeddingService"
    raise ModelNotFoundError(
        f"{model} is a model of the kind {spec.kind}, not {kind}: use it as {use}({spec.name!r}), or take one of "
        f"{others} here"
    )


def _find(model: str | Path, options: LoadOptions, check: Callable[..., None], read: Callable[..., Found]) -> Found:
    check = partial(check, repo=resolve(model).repo or "")
    for last in (False, True):
        local = hub.ensure_model(
            model,
            cache_dir=options.cache_dir,
            max_cache_gb=options.max_cache_gb,
            trusted=options.trusted,
            offline=options.offline,
            check=check,
        )
        known = local.snapshot
        try:
            return read(
                local.folder,
                name=local.name,
                spec=local.spec,
                repo=local.repo,
                revision=known.revision if known else "",
                # A user's own folder is hashed only when its fingerprint is needed.
                weights_digest=known.weights_digest if known else "",
            )
        except ModelNotFoundError:
            # Another process may have evicted it since it was found: fetch it again, but only once.
            if last or known is None or not known.damaged_files():
                raise
    raise AssertionError("unreachable")


def download_model(
    model: str,
    *,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    show_progress: bool = False,
    force: bool = False,
) -> Path:
    """Make a model available in the cache with every byte verified; arguments and errors as in `hub.models`.

    An unsupported model is rejected before its weights are downloaded.
    """
    return hub.download_model(
        model,
        cache_dir=cache_dir,
        revision=revision,
        show_progress=show_progress,
        force=force,
        check=partial(_check_either, repo=resolve(model).repo or ""),
    )


def _check_either(folder: Path, repo: str) -> None:
    """Check from its JSON files that a model is supported, whichever kind it is."""
    file = folder / "config.json"
    if file.is_file() and is_reranker(folder, read_json(file), repo):
        check_cross_encoder(folder, repo)
    else:
        check_settings(folder, repo)


def describe_model(
    model: str | Path,
    options: LoadOptions = _DEFAULTS,
    *,
    dimension: int | None = None,
    normalize: bool | None = None,
    prompts: Mapping[str, str] | None = None,
    tasks: Mapping[str, str] | None = None,
) -> ModelInfo:
    """Describe a model and the vector space these settings select; downloads it if needed, loads nothing.

    Args:
        model, options: as for `find_checkpoint`.
        dimension, normalize, prompts, tasks: as for `Checkpoint.info`.
    """
    checkpoint = find_checkpoint(model, options)
    return checkpoint.info(dimension=dimension, normalize=normalize, prompts=prompts, tasks=tasks)


def find_similarity(
    model: str | Path,
    *,
    cache_dir: Path | None = None,
    normalize: bool | None = None,
    pooling: str | Sequence[str] | None = None,
) -> str | None:
    """Return the similarity for a model's vectors, as far as this machine knows; downloads and loads nothing.

    Args:
        model: a short name, "org/repo", or a checkpoint folder.
        cache_dir: as for `ensure_model`.
        normalize, pooling: as for `describe_model`.
    Returns:
        "cosine" for vectors of unit length, else what the checkpoint says; None if it is not here, or unreadable.
    """
    if normalize:
        return "cosine"
    try:
        source = resolve(model)
        if source.spec and normalize is None:
            # All models of the registry make vectors of unit length.
            return "cosine"
        snapshot = None if source.folder else hub.find_snapshot(source, cache_dir)
        folder = snapshot.folder if snapshot else source.folder
        if folder is None:
            return None
        checkpoint = read_checkpoint(folder, spec=source.spec, repo=source.repo or "", pooling=pooling)
    except (EmbeddingError, OSError, RuntimeError, ValueError):  # the last two: "~nobody/m", "a\0b"
        return None
    is_unit = checkpoint.normalize if normalize is None else normalize
    return "cosine" if is_unit else checkpoint.similarity
