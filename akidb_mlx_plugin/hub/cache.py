"""The model cache as a whole: what is there, what it takes, and what may go."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from stat import S_ISREG

from filelock import Timeout

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.locks import PROBE_S, download_lock, file_lock, held_alone, record_of, use_lock
from akidb_mlx_plugin.hub.registry import list_models
from akidb_mlx_plugin.hub.snapshots import Snapshot, read_own, read_shared, shared_cache_dir

_GB = 1e9

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        name: its short name, or its repository where it has none.
        repo: Hugging Face repository.
        revision: commit, or digest of the weights for a mirror; "" for what is left of a download.
        folder: where it lies.
        size_bytes: what its files take.
        last_used: when it was last loaded or asked for (UTC).
        in_use: some process, this one included, holds it with `mark_in_use`, or is downloading it.
        partial: what is left of a download that was not finished.
        shared: in the machine's Hugging Face cache, where this package removes nothing.
        snapshot: its files; None for what is left of a download.
    """

    name: str
    repo: str
    revision: str
    folder: Path
    size_bytes: int
    last_used: datetime
    in_use: bool
    partial: bool = False
    shared: bool = False
    snapshot: Snapshot | None = field(default=None, repr=False, compare=False)


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
        include_partial: list what is left of unfinished downloads too.
    """
    root = resolve_cache_dir(cache_dir)
    models = []
    for snapshot in _snapshots(root):
        # A model may be evicted by another process while it is being looked at.
        with suppress(FileNotFoundError):
            models.append(_describe(snapshot))
    models += _partials(root) if include_partial else []
    return sorted(models, key=lambda model: model.last_used)


def list_shared_models() -> list[CachedModel]:
    """Return the models of the machine's Hugging Face cache that are whole, by name."""
    models = []
    for folder in shared_cache_dir().glob("models--*/snapshots/*"):
        repo = _repo_of(folder.parent.parent)
        with suppress(OSError):
            snapshot = None if record_of(folder).is_file() else read_shared(repo, folder)
            if snapshot and not snapshot.damaged_files():
                models.append(_describe(snapshot))
    return sorted(models, key=lambda model: model.name)


def cache_size_gb(cache_dir: str | Path | None = None) -> float:
    """Return what the cache takes on disk, unfinished downloads included, in GB of 10^9 bytes."""
    root = resolve_cache_dir(cache_dir)
    # Asks for no lock, unlike a listing: a cleanup elsewhere would take whoever measures for a user.
    return sum(map(_size_bytes, [*root.glob("models--*"), *legacy.folders(root)])) / _GB


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
    with _changing(root):
        return _remove_oldest(root, max_gb * _GB, set(keep), dry_run)


def remove_model(repo: str, *, cache_dir: str | Path | None = None) -> tuple[list[CachedModel], list[CachedModel]]:
    """Remove all that the cache has of a repository.

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
    """One change of the cache at a time: two that look at the same model would each take the other for its user."""
    lock = file_lock(root, "cleanup")
    try:
        lock.acquire()
    except PermissionError as error:
        raise InvalidInputError(f"no permission to change the model cache {root}: {error}") from error
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
            # Two commits of a repository may have files in common, which stay with the other.
            excess = excess - model.size_bytes if dry_run else cache_size_gb(root) * _GB - max_bytes
    if excess > 0 and not dry_run:
        _log.warning(
            "the model cache %s stays %.1f GB above its limit: the rest is in use or cannot be removed",
            root,
            excess / _GB,
        )
    return removed


def _is_removable(root: Path, model: CachedModel) -> bool:
    # What is linked into the cache lies elsewhere, and is not the cache's to remove.
    depth = len(model.folder.relative_to(root).parts)
    return not model.in_use and not any(path.is_symlink() for path in (model.folder, *model.folder.parents)[:depth])


def _snapshots(root: Path) -> Iterator[Snapshot]:
    for folder in root.glob("models--*/snapshots/*"):
        if snapshot := read_own(_repo_of(folder.parent.parent), folder):
            yield snapshot
    for folder in legacy.folders(root):
        if found := legacy.read(folder):
            yield found[0]


def _partials(root: Path) -> Iterator[CachedModel]:
    """Yield what is left of downloads: of a repository all that belongs to no model."""
    rests = {folder: [folder] for folder in legacy.folders(root) if legacy.read(folder) is None}
    # Where both caches are one, what this package did not note is another tool's.
    if root.resolve() != shared_cache_dir().resolve():
        rests |= {repo: rest for repo in root.glob("models--*") if (rest := _rest_of(repo))}
    for folder, rest in rests.items():
        repo = _repo_of(folder if folder.parent == root else folder.parent)
        with suppress(FileNotFoundError):
            yield CachedModel(
                name=_short_name(repo),
                repo=repo,
                revision="",
                folder=folder,
                size_bytes=sum(map(_size_bytes, rest)),
                last_used=datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc),
                in_use=_is_downloading(root, repo),
                partial=True,
            )


def _rest_of(repo: Path) -> list[Path]:
    """Return what of a repository's folder belongs to no model."""
    folders = list(repo.glob("snapshots/*"))
    rest = [folder for folder in folders if not record_of(folder).is_file()]
    if len(rest) == len(folders):
        return [repo]
    return [*rest, *repo.glob("blobs/*.incomplete"), *repo.glob(f"{legacy.INCOMPLETE}*")]


def _describe(snapshot: Snapshot) -> CachedModel:
    seen = (snapshot.record or snapshot.folder).stat().st_mtime
    return CachedModel(
        name=_short_name(snapshot.repo),
        repo=snapshot.repo,
        revision=snapshot.revision,
        folder=snapshot.folder,
        size_bytes=snapshot.size_bytes,
        last_used=datetime.fromtimestamp(seen, timezone.utc),
        in_use=_is_used(snapshot.folder),
        shared=snapshot.record is None,
        snapshot=snapshot,
    )


def _repo_of(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def _short_name(repo: str) -> str:
    return next((spec.name for spec in list_models() if spec.repo == repo), repo)


def _size_bytes(path: Path) -> int:
    """Return what a file or folder takes; a link takes nothing, and what vanishes meanwhile neither."""
    total = 0
    for file in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):
            stat = file.lstat()
            total += stat.st_size if S_ISREG(stat.st_mode) else 0
    return total


def _is_used(folder: Path) -> bool:
    lock = use_lock(folder)
    if lock is None or not lock.is_file():
        return False
    try:
        with held_alone(lock) as alone:
            return not alone
    except PermissionError:
        return False


def _is_downloading(root: Path, repo: str) -> bool:
    lock = download_lock(root, repo)
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
    # What is left of a download may have been a model until it was found damaged, and be in use as such.
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
        # Of somebody else, in a shared cache: what is next in age may go instead.
        _log.warning("cannot remove %s from the model cache: %s", model.folder, error.strerror or error)
        return False
    _log.info("removed %s from the model cache", model.folder)
    return True


def _delete_revision(root: Path, folder: Path) -> None:
    """Remove a snapshot, and of its blobs those that no other snapshot has.

    Without its record, which goes first, what an interruption leaves is no model.
    """
    from huggingface_hub import scan_cache_dir

    repo = folder.parent.parent
    record_of(folder).unlink(missing_ok=True)
    (repo / "trees" / f"{folder.name}.json").unlink(missing_ok=True)
    scan = scan_cache_dir(root)
    # A fork has the commits of its origin, and only one of them is meant.
    mine = frozenset(entry for entry in scan.repos if entry.repo_path.name == repo.name)
    if any(revision.commit_hash == folder.name for entry in mine for revision in entry.revisions):
        replace(scan, repos=mine).delete_revisions(folder.name).execute()
    else:
        # A link without its blob, or a branch without its commit: huggingface_hub passes the repository over.
        shutil.rmtree(folder)
    if folder.exists():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _delete_rest(root: Path, repo: Path) -> None:
    for path in _rest_of(repo):
        if path.parent.name == "snapshots":
            _delete_revision(root, path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
