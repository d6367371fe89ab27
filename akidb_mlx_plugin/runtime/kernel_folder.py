"""Where the kernels that MLX compiles for a Linux CPU are kept: in a folder that nobody else can write to.

MLX compiles them with g++ into shared libraries below `<temporary folder>/mlx/<version>/cpu`, under names that anybody
can predict, and loads whatever lies there. On a machine with other users that is their code in this process. So a
kernel is loaded for the first time, which is the only time that MLX looks for its library, inside `load_kernel`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import platform
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

# Whether MLX compiles kernels for the CPU into a folder that this package has to choose. A Mac's temporary folder
# belongs to the user alone.
IS_GUARDED = sys.platform.startswith("linux")

_LIST = "libraries.json"
# How long to wait for another process that compiles; a kernel takes a second or two.
_LOCK_SECONDS = 60.0
# What a shell would not take as it is: MLX puts the folder's name in double quotes into a command.
_UNQUOTABLE = frozenset('"$`\\\n')

_lock = threading.Lock()
logger = logging.getLogger(__name__)


def load_kernel(evaluate: Callable[[], None]) -> bool:
    """Have MLX compile and load a kernel in the private folder.

    Args:
        evaluate: evaluates an array that needs the kernel.
    Returns:
        False if there is no such folder, or the kernel could not be compiled; it must not be used then.
    """
    with _lock:
        folder = _private_folder()
        if folder is None:
            return False
        try:
            with FileLock(folder / ".lock", timeout=_LOCK_SECONDS):
                _remove_damaged(folder)
                with _temporary_folder(folder):
                    evaluate()
                # Without a list, the next process compiles once more.
                with suppress(OSError):
                    _write_list(folder)
        except (OSError, RuntimeError) as error:
            # The compiler's own message comes last.
            _warn_once(f"MLX could not compile a kernel in {folder}: {' '.join(str(error).split())[-300:]}")
            return False
        return True


@cache
def _private_folder() -> Path | None:
    """Return the folder of this user's kernels, made where needed; None if no place is safe."""
    reasons = []
    for folder in _candidates():
        try:
            _make_private(folder)
            return folder
        except OSError as error:
            reasons.append(str(error))
    _warn_once(f"no folder for compiled kernels: {'; '.join(reasons)}")
    return None


@cache
def _warn_once(reason: str) -> None:
    logger.warning("embedding on this CPU goes without MLX's compiled kernels, and is slower for it: %s", reason)


def _candidates() -> Iterator[Path]:
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        yield Path(home, ".cache", "akidb", "kernels", platform.machine())
    with suppress(OSError):
        yield Path(tempfile.gettempdir(), f"akidb-mlx-kernels-{os.geteuid()}")


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can write to, or check that it is one.

    Raises:
        OSError: it cannot be made, or another user could put a file into it, or another folder in its place.
    """
    if _UNQUOTABLE & set(str(folder)):
        raise OSError(f"{folder} has a character that a shell would not take as it is")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = folder.lstat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or own.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder of this user's alone")
    folder.chmod(0o700)
    for parent in folder.resolve().parents:
        found = parent.stat()
        # In a sticky folder such as /tmp, others cannot rename what is not theirs.
        shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.geteuid()):
            raise OSError(f"others can replace {folder}: {parent} is not this user's alone")
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise OSError(f"{folder} cannot be written to, or its file system allows no libraries")


def _remove_damaged(folder: Path) -> None:
    """Remove libraries that are not as they were when they were loaded: loading half of one kills the process."""
    try:
        whole = json.loads((folder / _LIST).read_bytes())
    except (OSError, ValueError, RecursionError):
        whole = None
    if not isinstance(whole, dict):
        whole = {}
    for name, digest in _digests(folder).items():
        if whole.get(name) != digest:
            (folder / name).unlink()


def _write_list(folder: Path) -> None:
    partial = folder / f"{_LIST}.{os.getpid()}"
    partial.write_text(json.dumps(_digests(folder), indent=0))
    partial.replace(folder / _LIST)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(library.relative_to(folder)): hashlib.sha256(library.read_bytes()).hexdigest()
        for library in folder.rglob("*.so")
    }


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    """Have C++ find its temporary files in a folder; `os.environ` and Python's `tempfile` are left as they are.

    MLX asks the C library's environment for the folder, each time it looks for a library.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    before = libc.getenv(b"TMPDIR")
    ours = os.fsencode(folder)
    os.putenv(b"TMPDIR", ours)
    try:
        yield
    finally:
        # Whoever has set another one meanwhile meant it.
        if libc.getenv(b"TMPDIR") == ours:
            if before is None:
                os.unsetenv(b"TMPDIR")
            else:
                os.putenv(b"TMPDIR", before)
