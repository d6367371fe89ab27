"""`akidb-mlx serve` as processes: sockets, signals, idle exit, and what a person sees of it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.providers import remote as remote_provider
from akidb_mlx_plugin.providers.mock import hash_texts

CONNECTIONS = 1000


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Mock vectors, and a home of its own."""
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "AKIDB_EMBEDDING__MODE": "mock",
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """Start `akidb-mlx serve …`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "akidb_mlx_plugin", "serve", *arguments]
        started.append(
            subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=-1, stderr=subprocess.STDOUT, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def client(path: Path) -> EmbeddingService:
    config = EmbeddingConfig.model_validate({"mlx": {"model": "mock"}, "remote": {"url": f"unix://{path}"}})
    return EmbeddingService(config)


@pytest.mark.slow
def test_a_unix_socket_from_start_to_end(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_provider, "_RECONNECT_S", 0.2)
    path = tmp_path / "socket"
    killed = run("--uds", str(path))
    assert first_line(killed) == f"serving mock at unix://{path} (process {killed.pid})\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with client(path) as far:
        np.testing.assert_array_equal(far.embed_batch(["a"]).embeddings, hash_texts(["a"], 384))
        second = run("--uds", str(path))
        assert second.wait(60) == 1
        assert "a server is listening on" in first_line(second)
        killed.kill()
        killed.wait()
        with pytest.raises(ServiceUnavailableError, match="Connection refused"):
            far.embed_batch(["a"])
        assert path.exists()
        # It replaces what the killed one left, and the client finds it.
        third = run("--uds", str(path))
        assert first_line(third).startswith("serving mock")
        np.testing.assert_array_equal(far.embed_batch(["b"]).embeddings, hash_texts(["b"], 384))
        third.send_signal(signal.SIGTERM)
        assert third.wait(30) == 0
    assert not path.exists()


@pytest.mark.slow
def test_a_file_of_another_kind_stays(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    process = run("--uds", str(tmp_path / "file"))
    assert process.wait(60) == 1
    assert "is not a socket" in first_line(process)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_other_machines_need_a_token(run: Any) -> None:
    process = run("--host", "0.0.0.0", "--port", "0")
    assert process.wait(60) == 1
    assert "set AKIDB_SERVE_TOKEN" in first_line(process)


@pytest.mark.slow
def test_detached_with_status_and_stop(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def detach(path: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "akidb_mlx_plugin", "serve", "--uds", path, "--detach"]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    def ask(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["serve", *arguments])

    assert "no server is running" in ask("status").output
    begun = detach("one")
    assert (begun.returncode, begun.stdout) == (0, "")
    (row,) = json.loads(ask("status", "--json").stdout)
    assert (row["address"], row["models"]) == (f"unix://{tmp_path}/one", "mock")
    assert f"(process {row['process']}, log {row['log']})" in begun.stderr
    with client(tmp_path / "one") as far:
        assert far.embed_batch(["a"]).embeddings.shape == (1, 384)
    assert ask("stop").stderr == f"stopped process {row['process']}\n"
    assert ask("stop").exit_code == 1
    failed = detach("no/folder")
    assert failed.returncode == 1
    assert "cannot listen on no/folder" in failed.stderr


@pytest.mark.slow
def test_idle_exit(run: Any, tmp_path: Path) -> None:
    process = run("--uds", str(tmp_path / "socket"), "--idle-exit", "1s")
    assert first_line(process).startswith("serving")
    assert process.wait(60) == 0
    assert not (tmp_path / "socket").exists()


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CONNECTIONS + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this system allows {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("_many_descriptors")
def test_a_thousand_connections(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert first_line(run("--uds", str(path))).startswith("serving")
    body = b'{"model": "mock", "input": "a", "encoding_format": "base64", "dimensions": 8}'
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connections = []
    try:
        for _ in range(CONNECTIONS):
            connection = socket.socket(socket.AF_UNIX)
            connections.append(connection)
            connection.settimeout(60)
            connection.connect(str(path))
        # All are open before the first one asks.
        for connection in connections:
            connection.sendall(head + body)
        assert all(connection.recv(4096).startswith(b"HTTP/1.1 200") for connection in connections)
    finally:
        for connection in connections:
            connection.close()
