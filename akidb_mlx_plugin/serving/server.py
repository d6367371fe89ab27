"""Run a server in this process until it is told to stop, or nobody has used it for long enough."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.serving.app import DEFAULT_MAX_BODY_BYTES, Activity, make_app
from akidb_mlx_plugin.serving.models import ServedModels
from akidb_mlx_plugin.serving.sockets import is_loopback, listen_on_path, listen_on_port

# Above the 60 seconds after which most clients let go of an idle connection.
_KEEP_ALIVE_S = 75
_LOOK_S = 1.0
_DESCRIPTORS = 65_536


@dataclass(frozen=True)
class ServerOptions:
    """How a server is reached and when it stops.

    Attributes:
        host: address to listen on; another than this machine's own needs a token.
        port: 0 for a free one; None for no TCP port.
        uds: path of a Unix socket; None for none.
        token: what clients must send; None for no check.
        idle_exit_s: stop after so many seconds without a request; -1 for never.
        drain_s: how long the last requests may take once it stops.
        max_body_bytes: largest body of a request.
    """

    host: str = "127.0.0.1"
    port: int | None = 8321
    uds: Path | None = None
    token: str | None = None
    idle_exit_s: float = -1.0
    drain_s: float = 30.0
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES


@contextmanager
def open_listeners(options: ServerOptions) -> Iterator[list[socket.socket]]:
    """Listen, and remove the Unix socket at the end.

    Raises:
        InvalidInputError: reachable from other machines without a token, or nothing to listen on.
        ServiceUnavailableError: an address cannot be used.
    """
    if options.port is None and options.uds is None:
        raise InvalidInputError("nothing to listen on: give --port or --uds")
    if options.port is not None and not is_loopback(options.host) and not options.token:
        raise InvalidInputError(
            f"--host {options.host} can be reached from other machines: set AKIDB_SERVE_TOKEN to a secret that clients "
            "must send, or listen on 127.0.0.1"
        )
    listeners = []
    with ExitStack() as stack:
        if options.uds is not None:
            listeners.append(stack.enter_context(listen_on_path(options.uds)))
            stack.callback(_remove_own, options.uds, os.stat(options.uds).st_ino)
        if options.port is not None:
            listeners.append(stack.enter_context(listen_on_port(options.host, options.port)))
        yield listeners


def run_server(models: ServedModels, options: ServerOptions, listeners: Sequence[socket.socket]) -> None:
    """Serve until SIGTERM, SIGINT or the idle limit, and answer what is waiting then.

    Args:
        models: what it serves; closed at the end.
        options: how.
        listeners: from `open_listeners`.
    """
    _raise_descriptor_limit()
    activity = Activity()
    app = make_app(
        models,
        token=options.token,
        max_body_bytes=options.max_body_bytes,
        activity=activity,
        drain_s=options.drain_s,
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(options.drain_s)),
    )
    with _quiet_end():
        _Server(config, activity, options.idle_exit_s).run(sockets=list(listeners))


class _Server(uvicorn.Server):
    """Uvicorn's server, which also stops when it has been idle for long enough."""

    def __init__(self, config: uvicorn.Config, activity: Activity, idle_exit_s: float) -> None:
        super().__init__(config)
        self._activity = activity
        self._idle_exit_s = idle_exit_s

    async def main_loop(self) -> None:
        watching = asyncio.create_task(self._watch()) if self._idle_exit_s >= 0 else None
        try:
            await super().main_loop()
        finally:
            if watching is not None:
                watching.cancel()

    async def _watch(self) -> None:
        while self._activity.idle_s < max(self._idle_exit_s, _LOOK_S):
            await asyncio.sleep(min(_LOOK_S, max(self._idle_exit_s, 0.1)))
        self.should_exit = True


def _remove_own(path: Path, inode: int) -> None:
    """Remove the socket, unless another server has put its own there."""
    with suppress(OSError):
        if os.stat(path).st_ino == inode:
            path.unlink()


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Let a signal end the server and nothing else: uvicorn raises it again, for the handlers it found."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_descriptor_limit() -> None:
    """Allow as many connections as the system does; the usual limit is 256 or 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
