"""Bring one file of a hub to the disk: resumed where it was cut, verified before it gets its name."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub_client import RemoteFile, RemoteModel, host_of, open_url
from akidb_mlx_plugin.retries import TransientError, with_retries

# Called with a file's path and the bytes of it that are on disk.
Advance = Callable[[str, int], None]

_PART = ".part"
# Room for the manifest and for what else the file system needs.
_SPARE_BYTES = 16 << 20

logger = logging.getLogger(__name__)


def fetch_files(remote: RemoteModel, files: list[RemoteFile], folder: Path, *, show_progress: bool = False) -> None:
    """Bring files of a repository into a folder; those that are there already, verified, stay.

    Args:
        remote: the repository.
        files: some of its files.
        folder: where to; `<file>.part` in it is taken up where it ends.
        show_progress: draw a bar on standard error.
    Raises:
        TransientError: the connection failed in each attempt; what came is kept for the next time.
        DownloadError: refused, or no room on the disk.
    """
    missing = [file for file in files if not file.matches(folder / file.path)]
    on_disk = sum(_size(_part(folder, file)) for file in missing)
    check_free_space(folder, sum(file.size for file in missing) - on_disk, remote.repo)
    if missing:
        megabytes = sum(file.size for file in missing) / 1e6
        logger.info("downloading %s (%.0f MB, %.0f there already)", remote.repo, megabytes, on_disk / 1e6)
    with _progress(remote.repo, sum(file.size for file in missing), show_progress) as advance:
        for file in missing:
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            _copy_from_hub_cache(remote.repo, file, _part(folder, file))
            with_retries(partial(_fetch, remote, file, folder, advance))


def check_free_space(folder: Path, needed_bytes: int, name: str) -> None:
    """Refuse a download that the disk has no room for.

    Raises:
        DownloadError: with both sizes.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes + _SPARE_BYTES > free:
        raise DownloadError(
            f"{name} needs {needed_bytes / 1e6:.0f} MB in {folder}, and only {free / 1e6:.0f} MB are free; make room "
            "('akidb-mlx cache clean' removes models), or set AKIDB_MODEL_CACHE_DIR to another disk"
        )


def disk_error(error: OSError, folder: Path) -> DownloadError:
    """Say what to do about an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"the disk of {folder} is full; make room ('akidb-mlx cache clean' removes models) and ask again: "
            "the download is resumed"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DownloadError(f"the model cache {folder} cannot be written; set AKIDB_MODEL_CACHE_DIR ({error})")
    return DownloadError(f"the model cache {folder} cannot be used: {error}")


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / f"{file.path}{_PART}"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _fetch(remote: RemoteModel, file: RemoteFile, folder: Path, advance: Advance) -> None:
    """Take up a file where it ends, verify it, give it its name."""
    part = _part(folder, file)
    if _size(part) > file.size:
        part.unlink()
    if _size(part) < file.size or not part.exists():
        _receive(remote, file, part, advance)
    if not file.matches(part):
        part.unlink()
        raise TransientError(f"{file.path} of {remote.repo} arrived damaged from {host_of(remote.endpoint)}")
    advance(file.path, file.size)
    part.replace(folder / file.path)


def _receive(remote: RemoteModel, file: RemoteFile, part: Path, advance: Advance) -> None:
    done = _size(part)
    # Compressed, a range would count other bytes than the file has.
    headers = {"accept-encoding": "identity"}
    if done:
        headers["range"] = f"bytes={done}-"
    with open_url(remote.url(file.path), remote.repo, remote.commit, headers=headers) as response:
        resumed = done > 0 and response.status_code == 206
        done = done if resumed else 0
        with part.open("ab" if resumed else "wb") as stream:
            for chunk in response.iter_bytes():
                stream.write(chunk)
                done += len(chunk)
                if done > file.size:
                    break
                advance(file.path, done)
            stream.flush()
            # A manifest must not outlive, in a power cut, the content it vouches for.
            os.fsync(stream.fileno())
    if done < file.size:
        raise TransientError(f"{file.path} of {remote.repo} ended after {done} of {file.size} bytes")


def _copy_from_hub_cache(repo: str, file: RemoteFile, part: Path) -> None:
    """Take a file that other tools of Hugging Face have downloaded before."""
    from huggingface_hub import constants

    blob = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs" / (file.sha256 or file.blob_id)
    if not part.exists() and file.matches(blob):
        logger.info("copying %s of %s from %s", file.path, repo, blob)
        shutil.copyfile(blob, part)


@contextmanager
def _progress(name: str, total_bytes: int, shown: bool) -> Iterator[Advance]:
    if not shown or not total_bytes:
        yield lambda path, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total_bytes)
        on_disk: dict[str, int] = {}

        def advance(path: str, done: int) -> None:
            on_disk[path] = done
            bar.update(task, completed=sum(on_disk.values()))

        yield advance
