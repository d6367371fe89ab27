"""Evict models from the cache: least recently used first, never one in use."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.cache import CachedModel, cache_size_gb, list_cached_models, resolve_cache_dir, rest_of
from akidb_mlx_plugin.hub.locks import PROBE_S, download_lock, file_lock, held_alone, record_of, use_lock

_GB = 1e9

logger = logging.getLogger(__name__)


def cleanup_cache(
    max_gb: float | None,
    *,
    cache_dir: str | Path | None = None,
    dry_run: bool = False,
    keep: Collection[str | Path] = (),
) -> list[CachedModel]:
    """Remove models, least recently used first, until the cache fits its limit.

    A model that any process uses or is downloading stays, even if the cache then remains too large.

    Args:
        max_gb: allowed size in GB of 10^9 bytes; 0 empties the cache, None removes nothing.
        cache_dir: defaults to `default_cache_dir()`.
        dry_run: only return what would be removed.
        keep: names, repositories or folders to keep whatever their age.
    Returns:
        What was removed, including unfinished downloads.
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
    with _changing(root):
        return _remove_oldest(root, max_gb * _GB, set(keep), dry_run)


def remove_model(repo: str, *, cache_dir: str | Path | None = None) -> tuple[list[CachedModel], list[CachedModel]]:
    """Remove everything the cache has of a repository.

    Returns:
        What was removed, and what stays because it is in use or cannot be removed.
    """
    root = resolve_cache_dir(cache_dir)
    models = [model for model in list_cached_models(root, include_partial=True) if model.repo == repo]
    if not models:
        return [], []
    with _changing(root):
        removed = [model for model in models if _is_removable(root, model) and _evict(root, model)]
    return removed, [model for model in models if model not in removed]


@contextmanager
def _changing(root: Path) -> Iterator[None]:
    """Allow one change of the cache at a time: two would each take the other for a user of the model."""
    lock = file_lock(root, "cleanup")
    try:
        lock.acquire()
    except PermissionError as error:
        raise InvalidInputError(f"no permission to modify the model cache {root}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _remove_oldest(root: Path, max_bytes: float, keep: set[str | Path], dry_run: bool) -> list[CachedModel]:
    excess = cache_size_gb(root) * _GB - max_bytes
    removed = []
    for model in list_cached_models(root, include_partial=True):
        if excess <= 0:
            break
        if not _is_removable(root, model) or not {model.name, model.repo, model.folder, str(model.folder)}.isdisjoint(
            keep
        ):
            continue
        if dry_run or _evict(root, model):
            removed.append(model)
            # Two commits of a repository may share files, which stay with the other.
            excess = excess - model.size_bytes if dry_run else cache_size_gb(root) * _GB - max_bytes
    if excess > 0 and not dry_run:
        logger.warning(
            "the model cache %s remains %.1f GB above its limit: the rest is in use or cannot be removed",
            root,
            excess / _GB,
        )
    return removed


def _is_removable(root: Path, model: CachedModel) -> bool:
    # Anything linked into the cache is stored elsewhere, and is not the cache's to remove.
    depth = len(model.folder.relative_to(root).parts)
    return not model.in_use and not any(path.is_symlink() for path in (model.folder, *model.folder.parents)[:depth])


def _evict(root: Path, model: CachedModel) -> bool:
    """Remove a model unless it is now in use or being downloaded; return whether it is gone."""
    # An unfinished download may be a model that was found damaged, and still be in use.
    folders = [model.folder] if not model.partial else list(model.folder.glob("snapshots/*"))
    try:
        with ExitStack() as stack:
            stack.enter_context(download_lock(root, model.repo).acquire(timeout=PROBE_S, poll_interval=PROBE_S / 4))
            locks = [lock for folder in folders if (lock := use_lock(folder))]
            if not all(stack.enter_context(held_alone(lock)) for lock in locks):
                return False
            if model.folder.parent.name == "snapshots":
                _delete_revision(root, model.folder)
            elif model.folder.parent == root:
                _delete_rest(root, model.folder)
            else:
                legacy.discard(model.folder)
    except (Timeout, FileNotFoundError):
        return False
    except OSError as error:
        # Another user's, in a shared cache; try the next oldest instead.
        logger.warning("cannot remove %s from the model cache: %s", model.folder, error.strerror or error)
        return False
    logger.info("removed %s from the model cache", model.folder)
    return True


def _delete_revision(root: Path, folder: Path) -> None:
    """Remove a snapshot, and the blobs that no other snapshot has.

    Its record is removed first, so that what an interruption leaves is not a model.
    """
    from akidb_mlx_plugin.progress import import_tqdm_quietly

    import_tqdm_quietly()
    from huggingface_hub import scan_cache_dir

    repo = folder.parent.parent
    record_of(folder).unlink(missing_ok=True)
    (repo / "trees" / f"{folder.name}.json").unlink(missing_ok=True)
    scan = scan_cache_dir(root)
    # A fork shares its origin's commits, and only one of the two is meant.
    mine = frozenset(entry for entry in scan.repos if entry.repo_path.name == repo.name)
    if any(revision.commit_hash == folder.name for entry in mine for revision in entry.revisions):
        replace(scan, repos=mine).delete_revisions(folder.name).execute()
    else:
        # A link without its blob, or a branch without its commit: huggingface_hub skips the repository.
        shutil.rmtree(folder)
    if folder.exists():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _delete_rest(root: Path, repo: Path) -> None:
    for path in rest_of(repo):
        if path.parent.name == "snapshots":
            _delete_revision(root, path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
