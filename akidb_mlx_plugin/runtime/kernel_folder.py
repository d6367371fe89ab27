"""Keep the kernels that MLX compiles for a Linux CPU in a folder that only this user can write to.

MLX compiles them with g++ into shared libraries below `<temporary folder>/mlx/<version>/cpu`, under predictable names,
and loads whatever is there. On a machine with other users that could run their code in this process. So every kernel
is first loaded inside `load_kernel`; MLX looks for its library only that once.
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

# Whether MLX compiles CPU kernels into a folder that this package must choose. On macOS the temporary folder belongs to
# the user alone.
IS_GUARDED = sys.platform.startswith("linux")

_LIST = "libraries.json"
# How long to wait for another process to compile; a kernel takes a second or two.
_LOCK_SECONDS = 60.0
# Characters that are special to a shell in double quotes, in which MLX passes the folder's name.
_UNQUOTABLE = frozenset('"$`\\\n')

_lock = threading.Lock()
logger = logging.getLogger(__name__)


def load_kernel(evaluate: Callable[[], None]) -> bool:
    """Make MLX compile and load a kernel in the private folder.

    Args:
        evaluate: evaluates an array that needs the kernel.
    Returns:
        False if there is no such folder, or the kernel could not be compiled; then it must not be used.
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
                # Without a list, the next process compiles again.
                with suppress(OSError):
                    _write_list(folder)
        except (OSError, RuntimeError) as error:
            # The compiler's own message is at the end.
            _warn_once(f"MLX could not compile a kernel in {folder}: {' '.join(str(error).split())[-300:]}")
            return False
        return True


@cache
def _private_folder() -> Path | None:
    """Return the folder for this user's kernels, created if needed; None if no location is safe."""
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
    logger.warning("embedding on this CPU runs without MLX's compiled kernels, which is slower: %s", reason)


def _candidates() -> Iterator[Path]:
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        yield Path(home, ".cache", "akidb", "kernels", platform.machine())
    with suppress(OSError):
        yield Path(tempfile.gettempdir(), f"akidb-mlx-kernels-{os.geteuid()}")


def _make_private(folder: Path) -> None:
    """Create a folder that only this user can write to, or check an existing one.

    Raises:
        OSError: it cannot be created, or another user could write to it or replace it.
    """
    if _UNQUOTABLE & set(str(folder)):
        raise OSError(f"{folder} has a character that is special to a shell")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = folder.lstat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or own.st_mode & 0o022:
        raise OSError(f"{folder} is not a folder that only this user can write to")
    folder.chmod(0o700)
    for parent in folder.resolve().parents:
        found = parent.stat()
        # In a sticky folder such as /tmp, users can rename only their own files.
        shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.geteuid()):
            raise OSError(f"others can replace {folder}: {parent} is writable by other users")
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise OSError(f"{folder} is not writable, or its file system does not allow libraries")


def _remove_damaged(folder: Path) -> None:
    """Remove libraries that have changed since they were loaded: loading a truncated one kills the process."""
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
    """Set the temporary folder for C++ without changing `os.environ` or Python's `tempfile`.

    MLX reads it from the C library's environment each time it looks for a library.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    before = libc.getenv(b"TMPDIR")
    ours = os.fsencode(folder)
    os.putenv(b"TMPDIR", ours)
    try:
        yield
    finally:
        # Another value set in the meantime was intended.
        if libc.getenv(b"TMPDIR") == ours:
            if before is None:
                os.unsetenv(b"TMPDIR")
            else:
                os.putenv(b"TMPDIR", before)
