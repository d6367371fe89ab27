"""Which servers this user runs: a file for each, locked as long as the server lives."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from akidb_mlx_plugin.errors import ServiceUnavailableError

_LOOK_S = 0.1


@dataclass(frozen=True)
class RunningServer:
    """A server that runs.

    Attributes:
        pid: its process.
        addresses: where clients reach it, as in `remote.url`.
        models: the names of its models.
        started: seconds since the epoch.
        log: file that a detached one logs to; empty for one in a terminal.
    """

    pid: int
    addresses: list[str]
    models: list[str]
    started: float
    log: str = ""


def servers_dir() -> Path:
    """Return the folder of the files, and of the logs of detached servers."""
    return Path(os.path.expanduser("~/.cache/akidb/serve"))


@contextmanager
def announced(addresses: Sequence[str], models: Sequence[str], log: str = "") -> Iterator[None]:
    """List this process as a running server meanwhile."""
    folder = servers_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{os.getpid()}.json"
    record = RunningServer(os.getpid(), list(addresses), list(models), time.time(), log)
    with open(file, "w", encoding="utf-8") as handle:
        # The lock, not the number, says whether it lives: numbers of processes are used again.
        fcntl.flock(handle, fcntl.LOCK_EX)
        json.dump(asdict(record), handle)
        handle.flush()
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                file.unlink()


def list_running() -> list[RunningServer]:
    """Return the servers that run, oldest first; files of dead ones are removed."""
    found = []
    for file in sorted(servers_dir().glob("*.json")):
        with suppress(OSError), open(file, encoding="utf-8") as handle:
            if _is_locked(handle.fileno()):
                with suppress(ValueError, TypeError):
                    found.append(RunningServer(**json.load(handle)))
            else:
                file.unlink(missing_ok=True)
    return sorted(found, key=lambda server: server.started)


def stop_server(server: RunningServer, timeout_s: float) -> None:
    """Ask a server to answer what is waiting and end; return once it has.

    Raises:
        ServiceUnavailableError: it has not ended in time.
    """
    with suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    until = time.monotonic() + timeout_s
    while server in list_running():
        if time.monotonic() > until:
            raise ServiceUnavailableError(
                f"the server {server.pid} has not ended in {timeout_s:g} s; its last requests may take longer"
            )
        time.sleep(_LOOK_S)


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
