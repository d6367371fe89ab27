"""From a model's name to its checkpoint on disk and its description, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from akidb_mlx_plugin import hub
from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.reader import check_settings, read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.manifest import MANIFEST_NAME
from akidb_mlx_plugin.types import ModelInfo


def locate_checkpoint(
    model: str | Path,
    *,
    cache_dir: Path | None = None,
    max_cache_gb: float | None = None,
    trusted: bool = True,
    offline: bool | None = None,
) -> Checkpoint:
    """Find a model, downloading it where needed, and read what its folder says; arguments as `hub.ensure_model`."""
    for last in (False, True):
        local = hub.ensure_model(
            model,
            cache_dir=cache_dir,
            max_cache_gb=max_cache_gb,
            trusted=trusted,
            offline=offline,
            check=check_settings,
        )
        known = local.manifest
        try:
            return read_checkpoint(
                local.folder,
                name=local.name,
                spec=local.spec,
                repo=local.repo,
                revision=known.revision if known else "",
                # A folder of the user's own is hashed when its fingerprint is asked for, and not before.
                weights_digest=known.weights_digest if known else "",
            )
        except ModelNotFoundError:
            # Another process may have evicted it since it was found: fetch it again, once.
            if last or known is None or (local.folder / MANIFEST_NAME).is_file():
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
    """Make a model available in the cache with every byte verified; arguments and errors as `hub.download_model`.

    One that this package cannot compute is refused before its weights are downloaded.
    """
    return hub.download_model(
        model,
        cache_dir=cache_dir,
        revision=revision,
        show_progress=show_progress,
        force=force,
        check=check_settings,
    )


def describe_model(
    model: str | Path,
    *,
    cache_dir: Path | None = None,
    dimension: int | None = None,
    normalize: bool | None = None,
    prompts: Mapping[str, str] | None = None,
    tasks: Mapping[str, str] | None = None,
    trusted: bool = True,
) -> ModelInfo:
    """Describe a model and the vector space these settings select; it is downloaded where needed, not loaded.

    Args:
        model: a short name, "org/repo", or a checkpoint folder.
        cache_dir, trusted: as `hub.ensure_model`.
        dimension, normalize, prompts, tasks: as `Checkpoint.info`.
    """
    checkpoint = locate_checkpoint(model, cache_dir=cache_dir, trusted=trusted)
    return checkpoint.info(dimension=dimension, normalize=normalize, prompts=prompts, tasks=tasks)
