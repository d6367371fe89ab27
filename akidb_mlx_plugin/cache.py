"""The model cache on disk: what is there, what is in use, what may go.

    <cache>/                          AKIDB_MODEL_CACHE_DIR, else ~/.cache/akidb/models
      <org>--<name>/                  one repository
        <12 hex of the commit>/       a whole model: akidb-model.json and the files it lists
        wheel-<version>/              the same model, from its mirror on the package index
        .incomplete-<either>/         a download under way or cut short; renamed when all of it is verified
      .locks/                         one lock per repository (downloads) and per model (use)

Only a folder with a manifest counts as a model, and it gets its name when every file in it has been verified. The
manifest's modification time is when the model was last used.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import Timeout

from akidb_mlx_plugin.cache_locks import (
    PROBE_S,
    ModelInUse,
    download_lock,
    file_lock,
    held_alone,
    mark_in_use,
    repo_folder,
    use_lock,
)
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.manifest import MANIFEST_NAME, Manifest, read_manifest
from akidb_mlx_plugin.registry import list_models

__all__ = [
    "INCOMPLETE",
    "CachedModel",
    "ModelInUse",
    "cache_size_gb",
    "cleanup_cache",
    "default_cache_dir",
    "discard_folder",
    "find_cached",
    "list_cached_models",
    "mark_in_use",
    "resolve_cache_dir",
]

INCOMPLETE = ".incomplete-"

_GB = 1e9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        name: its short name, or its repository where it has none.
        repo: Hugging Face repository.
        revision: commit, or digest of the weights for a mirror; for a partial download, as much as is known.
        folder: where it lies.
        size_bytes: what it takes on disk.
        last_used: when it was last loaded or asked for (UTC).
        in_use: some process, this one included, holds it with `mark_in_use`, or is downloading it.
        partial: a download that was not finished; it is resumed when the model is asked for again.
    """

    name: str
    repo: str
    revision: str
    folder: Path
    size_bytes: int
    last_used: datetime
    in_use: bool
    partial: bool = False


def default_cache_dir() -> Path:
    """Return the cache's folder: AKIDB_MODEL_CACHE_DIR as it is set now, else ~/.cache/akidb/models."""
    return resolve_cache_dir(os.environ.get("AKIDB_MODEL_CACHE_DIR", "").strip() or "~/.cache/akidb/models")


def resolve_cache_dir(cache_dir: str | Path | None) -> Path:
    """Return the absolute folder that a caller's `cache_dir` means; None: the default.

    Raises:
        InvalidInputError: it begins with "~", and there is no home directory.
    """
    if cache_dir is None:
        return default_cache_dir()
    folder = os.path.expanduser(cache_dir)
    if folder.startswith("~"):
        raise InvalidInputError(
            f"there is no home directory for the model cache {cache_dir}; set AKIDB_MODEL_CACHE_DIR to a folder"
        )
    return Path(folder).absolute()


def list_cached_models(cache_dir: str | Path | None = None, *, include_partial: bool = False) -> list[CachedModel]:
    """Return the models in the cache, the least recently used first.

    Args:
        cache_dir: None: the default cache.
        include_partial: list unfinished downloads too.
    """
    models = []
    for folder in _folders(resolve_cache_dir(cache_dir)):
        manifest = None if folder.name.startswith(INCOMPLETE) else read_manifest(folder)
        if manifest or include_partial:
            # A model may be evicted by another process while it is being looked at.
            with suppress(FileNotFoundError):
                models.append(_describe(folder, manifest))
    return sorted(models, key=lambda model: model.last_used)


def cache_size_gb(cache_dir: str | Path | None = None) -> float:
    """Return what the cache takes on disk, unfinished downloads included, in GB of 10^9 bytes."""
    total = 0
    for folder in _folders(resolve_cache_dir(cache_dir)):
        # Asks for no lock, unlike a listing: a cleanup elsewhere would take whoever measures for a user.
        with suppress(FileNotFoundError):
            total += _size_bytes(folder)
    return total / _GB


def cleanup_cache(
    max_gb: float | None,
    *,
    cache_dir: str | Path | None = None,
    dry_run: bool = False,
    keep: Collection[str | Path] = (),
) -> list[CachedModel]:
    """Remove models, the least recently used first, until the cache is no larger than allowed.

    A model that any process uses, or is downloading, stays, even if the cache then remains too large.

    Args:
        max_gb: allowed size in GB of 10^9 bytes, 0 for none of it; None: no limit, nothing is removed.
        cache_dir: None: the default cache.
        dry_run: only tell what would go.
        keep: names, repositories or folders that stay whatever their age.
    Returns:
        What was removed, unfinished downloads among it.
    Raises:
        InvalidInputError: a limit below zero, or not a number.
    """
    if max_gb is None:
        return []
    if math.isnan(max_gb) or max_gb < 0:
        raise InvalidInputError(f"the cache's limit must be 0 GB or more, got {max_gb!r}")
    root = resolve_cache_dir(cache_dir)
    if not root.is_dir():
        return []
    try:
        # One at a time: two that look at the same model would each take the other for its user.
        with file_lock(root, "cleanup"):
            return _remove_oldest(root, max_gb * _GB, set(keep), dry_run)
    except PermissionError as error:
        raise InvalidInputError(f"no permission to change the model cache {root}: {error}") from error


def _remove_oldest(root: Path, max_bytes: float, keep: set[str | Path], dry_run: bool) -> list[CachedModel]:
    models = list_cached_models(root, include_partial=True)
    excess = sum(model.size_bytes for model in models) - max_bytes
    removed = []
    for model in models:
        if excess <= 0:
            break
        # What is linked into the cache lies elsewhere, and is not the cache's to remove.
        if (
            model.in_use
            or _is_linked(model.folder)
            or not {model.name, model.repo, model.folder, str(model.folder)}.isdisjoint(keep)
        ):
            continue
        if dry_run or _evict(root, model):
            removed.append(model)
            excess -= model.size_bytes
    if excess > 0:
        logger.warning(
            "the model cache %s stays %.1f GB above its limit: the rest is in use or cannot be removed",
            root,
            excess / _GB,
        )
    return removed


def _is_linked(folder: Path) -> bool:
    return folder.is_symlink() or folder.parent.is_symlink()


def find_cached(cache_dir: Path, repo: str, revision: str) -> tuple[Path, Manifest] | None:
    """Return the folder that a repository at a revision led to last, unverified, with its manifest."""
    found = []
    for folder in _folders(cache_dir, repo_folder(cache_dir, repo).name):
        manifest = None if folder.name.startswith(INCOMPLETE) else read_manifest(folder)
        when = manifest.led_here(repo, revision) if manifest else None
        if manifest and when is not None:
            found.append((when, folder, manifest))
    if not found:
        return None
    # A time to come was noted by a wrong clock, and would win for years.
    now = time.time()
    _, folder, manifest = max(found, key=lambda entry: (entry[0] <= now, entry[0]))
    return folder, manifest


def discard_folder(folder: Path) -> None:
    """Remove a folder in such a way that no moment shows a half model: what is left of it is `.incomplete-`."""
    doomed = folder
    if not folder.name.startswith(INCOMPLETE):
        doomed = folder.with_name(f"{INCOMPLETE}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed)
    with suppress(OSError):
        folder.parent.rmdir()


def _folders(cache_dir: Path, repo_pattern: str = "*--*") -> Iterator[Path]:
    for folder in cache_dir.glob(f"{repo_pattern}/*"):
        if folder.is_dir():
            yield folder


def _describe(folder: Path, manifest: Manifest | None) -> CachedModel:
    repo = manifest.repo if manifest else folder.parent.name.replace("--", "/", 1)
    seen = (folder / MANIFEST_NAME if manifest else folder).stat().st_mtime
    short_names = {spec.repo: spec.name for spec in list_models()}
    return CachedModel(
        name=short_names.get(repo, repo),
        repo=repo,
        revision=manifest.revision if manifest else folder.name.removeprefix(INCOMPLETE),
        folder=folder,
        size_bytes=_size_bytes(folder),
        last_used=datetime.fromtimestamp(seen, timezone.utc),
        in_use=_is_used(folder) if manifest else _is_downloading(folder),
        partial=manifest is None,
    )


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _is_used(folder: Path) -> bool:
    lock = use_lock(folder)
    if lock is None or not lock.is_file():
        return False
    try:
        with held_alone(lock) as alone:
            return not alone
    except PermissionError:
        return False


def _is_downloading(folder: Path) -> bool:
    lock = download_lock(folder.parent.parent, folder.parent.name)
    if not Path(lock.lock_file).is_file():
        return False
    try:
        with lock.acquire(timeout=PROBE_S, poll_interval=PROBE_S / 4):
            return False
    except Timeout:
        return True
    except PermissionError:
        return False


def _evict(root: Path, model: CachedModel) -> bool:
    """Remove a model unless someone has begun to use or download it; True if it is gone."""
    lock = use_lock(model.folder)
    try:
        with ExitStack() as stack:
            lock_of_downloads = download_lock(root, model.repo)
            stack.enter_context(lock_of_downloads.acquire(timeout=PROBE_S, poll_interval=PROBE_S / 4))
            if lock and not stack.enter_context(held_alone(lock)):
                return False
            discard_folder(model.folder)
    except (Timeout, FileNotFoundError):
        return False
    except OSError as error:
        # Of somebody else, in a shared cache: what is next in age may go instead.
        logger.warning("cannot remove %s from the model cache: %s", model.folder, error.strerror or error)
        return False
    logger.info("removed %s from the model cache", model.folder)
    return True
