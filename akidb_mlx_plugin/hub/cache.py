"""The model cache as a whole: its models and its size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from stat import S_ISREG

from filelock import Timeout

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.files import Snapshot
from akidb_mlx_plugin.hub.locks import PROBE_S, download_lock, held_alone, record_of, use_lock
from akidb_mlx_plugin.hub.registry import list_models
from akidb_mlx_plugin.hub.snapshots import read_own, read_shared, shared_cache_dir

_GB = 1e9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        name: short name, or the repository if it has none.
        repo: Hugging Face repository.
        revision: commit, or digest of the weights for a mirror; "" for an unfinished download.
        folder: where it is stored.
        size_bytes: total size of its files.
        last_used: when it was last loaded or requested (UTC).
        in_use: any process, this one included, holds it with `mark_in_use` or is downloading it.
        partial: an unfinished download.
        shared: in the machine's Hugging Face cache, where this package removes nothing.
        snapshot: its files; None for an unfinished download.
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
    """Return the cache's folder: AKIDB_MODEL_CACHE_DIR as currently set, else ~/.cache/akidb/models."""
    return resolve_cache_dir(os.environ.get("AKIDB_MODEL_CACHE_DIR", "").strip() or "~/.cache/akidb/models")


def resolve_cache_dir(cache_dir: str | Path | None) -> Path:
    """Return the absolute folder for a caller's `cache_dir`; None means the default.

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
    """Return the models in the cache, least recently used first.

    Args:
        cache_dir: defaults to `default_cache_dir()`.
        include_partial: include unfinished downloads.
    """
    root = resolve_cache_dir(cache_dir)
    models = []
    for snapshot in _snapshots(root):
        # Another process may evict a model meanwhile.
        with suppress(FileNotFoundError):
            models.append(_describe(snapshot))
    models += _partials(root) if include_partial else []
    return sorted(models, key=lambda model: model.last_used)


def list_shared_models() -> list[CachedModel]:
    """Return the complete models in the machine's Hugging Face cache, sorted by name."""
    models = []
    for folder in shared_cache_dir().glob("models--*/snapshots/*"):
        repo = _repo_of(folder.parent.parent)
        with suppress(OSError):
            snapshot = None if record_of(folder).is_file() else read_shared(repo, folder)
            if snapshot and not snapshot.damaged_files():
                models.append(_describe(snapshot))
    return sorted(models, key=lambda model: model.name)


def cache_size_gb(cache_dir: str | Path | None = None) -> float:
    """Return the cache's size on disk in GB of 10^9 bytes, unfinished downloads included."""
    root = resolve_cache_dir(cache_dir)
    # Takes no lock, unlike a listing: a concurrent cleanup would mistake this for use.
    if _is_shared(root):
        return sum(snapshot.size_bytes for snapshot in _snapshots(root)) / _GB
    return sum(map(_size_bytes, [*root.glob("models--*"), *legacy.folders(root)])) / _GB


def _is_shared(root: Path) -> bool:
    """Return whether this is also the machine's Hugging Face cache, where files without a record are other tools'."""
    return root.resolve() == shared_cache_dir().resolve()


def _snapshots(root: Path) -> Iterator[Snapshot]:
    for folder in root.glob("models--*/snapshots/*"):
        if snapshot := read_own(_repo_of(folder.parent.parent), folder):
            yield snapshot
    for folder in legacy.folders(root):
        if found := legacy.read(folder):
            yield found[0]


def _partials(root: Path) -> Iterator[CachedModel]:
    """Yield unfinished downloads: everything in a repository that belongs to no model."""
    rests = {folder: [folder] for folder in legacy.folders(root) if legacy.read(folder) is None}
    if not _is_shared(root):
        rests |= {repo: rest for repo in root.glob("models--*") if (rest := rest_of(repo))}
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


def rest_of(repo: Path) -> list[Path]:
    """Return everything in a repository's folder that belongs to no model."""
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
    return next((spec.name for spec in list_models(None) if spec.repo == repo), repo)


def _size_bytes(path: Path) -> int:
    """Return the size of a file or folder; links, and files that vanish meanwhile, count as nothing."""
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
    except OSError:
        # Not writable, read-only, or without locks: nothing can be evicted there.
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
    except OSError:
        return False
