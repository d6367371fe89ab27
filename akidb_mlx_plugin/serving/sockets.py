"""The sockets that a server listens on."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from akidb_mlx_plugin.errors import InvalidInputError, ServiceUnavailableError

_BACKLOG = 2048


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen_on_port(host: str, port: int) -> socket.socket:
    """Listen on a TCP port; 0 picks a free one.

    Raises:
        ServiceUnavailableError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ServiceUnavailableError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port, or --port 0 "
            "for a free one"
        ) from error
    return listener


def listen_on_path(path: Path) -> socket.socket:
    """Listen on a Unix socket that only its owner may use; a socket that a dead server left there is replaced.

    Raises:
        ServiceUnavailableError: another server listens there, or the path cannot be used.
        InvalidInputError: there is a file of another kind.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            _remove_dead(path)
            # Created with its final mode: a moment later would be too late.
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceUnavailableError(f"cannot listen on {path}: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address as a client's `remote.url`."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix://{os.path.abspath(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other servers from replacing a socket in this folder meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_dead(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidInputError(f"--uds: {path} exists and is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError as error:
            # A full backlog: alive, and busy.
            if error.errno not in (errno.EAGAIN, errno.ETIMEDOUT) and not isinstance(error, TimeoutError):
                raise
    raise ServiceUnavailableError(f"a server is listening on {path} already; stop it, or choose another path")
