"""HTTP connections to one server, over TCP or a Unix socket, kept open between calls.

The standard library's client, because a call must cost little: a query waits for it.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

# The server lets go of idle connections after 75 s.
_LONGEST_IDLE_S = 60.0


class ConnectionFailedError(Exception):
    """No answer came: nothing listens there, the connection broke, or time ran out."""


@dataclass(frozen=True)
class Answer:
    """An answer, whatever its status.

    Attributes:
        status: of HTTP.
        content: the whole body.
        retry_after_s: when to come back, if the server says so.
    """

    status: int
    content: bytes
    retry_after_s: float | None = None


class Connections:
    """Idle connections, taken and returned by any thread."""

    def __init__(self, url: str, token: str | None) -> None:
        """Store the address; connects to nothing.

        Args:
            url: http://HOST:PORT, https://HOST or unix:///PATH.
            token: sent with every call.
        """
        self._parts = urlsplit(url)
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._prefix = "" if self._parts.scheme == "unix" else self._parts.path
        self._lock = threading.Lock()
        self._idle: list[tuple[_Connection, float]] = []
        self._pid = os.getpid()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request, with headers beside those of every request, and return the answer.

        Raises:
            ConnectionFailedError: there is none.
        """
        until = time.monotonic() + timeout_s
        headers = {**self._headers, **(headers or {})}
        while (connection := self._take()) is not None:
            try:
                return self._exchange(connection, method, path, body, until, headers)
            except (ConnectionResetError, BrokenPipeError, http.client.BadStatusLine):
                # The server had closed it while it was idle: another one may do.
                connection.close()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise ConnectionFailedError(_explain(error)) from error
        connection = self._open()
        try:
            return self._exchange(connection, method, path, body, until, headers)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionFailedError(_explain(error)) from error

    def close(self) -> None:
        """Close the idle connections; later calls open new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def _exchange(
        self,
        connection: _Connection,
        method: str,
        path: str,
        body: bytes | None,
        until: float,
        headers: dict[str, str],
    ) -> Answer:
        connection.timeout = max(until - time.monotonic(), 0.001)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request(method, self._prefix + path, body, headers)
        connection.flush()
        response = connection.getresponse()
        content = response.read()
        if response.will_close:
            connection.close()
        else:
            self._put_back(connection)
        return Answer(response.status, content, _seconds(response.headers.get("Retry-After")))

    def _take(self) -> _Connection | None:
        with self._lock:
            if self._pid != os.getpid():
                # Forked: these belong to the parent, which goes on using them.
                self._idle, self._pid = [], os.getpid()
            while self._idle:
                connection, since = self._idle.pop()
                if time.monotonic() - since < _LONGEST_IDLE_S:
                    return connection
                connection.close()
        return None

    def _put_back(self, connection: _Connection) -> None:
        now = time.monotonic()
        with self._lock:
            self._idle.append((connection, now))
            # The oldest come first, and may never be taken again.
            while self._idle and now - self._idle[0][1] >= _LONGEST_IDLE_S:
                self._idle.pop(0)[0].close()

    def _open(self) -> _Connection:
        if self._parts.scheme == "unix":
            return _UnixConnection(unquote(self._parts.path))
        kind = _SecureConnection if self._parts.scheme == "https" else _Connection
        return kind(self._parts.hostname or "", self._parts.port)


class _Connection(http.client.HTTPConnection):
    """Sends a request's head and body at once: in two parts they would wake the server twice."""

    _unsent = b""

    def send(self, data: Any) -> None:
        self._unsent += data

    def flush(self) -> None:
        """Send what has been written."""
        data, self._unsent = self._unsent, b""
        super().send(data)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _UnixConnection(_Connection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


def _explain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
