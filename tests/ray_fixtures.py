"""What the tests of the Ray stage share: one cluster, because starting one takes seconds."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from host_fixtures import find_port
from host_helpers import PATIENCE_S


@dataclass(frozen=True)
class RunningCluster:
    """A Ray cluster of one node with three processors, which other processes have started.

    Attributes:
        address: for those on the node.
        client_address: for those that are on none.
        folder: where its processes stand.
    """

    address: str
    client_address: str
    folder: Path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster as `ray start` makes it, in a folder that is nobody else's."""
    folder = tmp_path_factory.mktemp("cluster")
    port, client_port = find_port(), find_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=3"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}", "--include-dashboard=false"]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(client_port, head, folder / "log")
        yield RunningCluster(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}", folder)
    finally:
        head.terminate()
        head.wait(PATIENCE_S)


def _wait_until_it_answers(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"the cluster does not answer: {log.read_text()}")
