"""What the tests of the Ray stage share: one cluster, because starting one takes seconds."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        temp_dir: where it says that it runs; Ray's own, /tmp/ray, would say so to everybody.
    """

    address: str
    client_address: str
    temp_dir: Path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster as `ray start` makes it, which stands in a folder of its own."""
    with run_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextmanager
def run_cluster(folder: Path) -> Iterator[RunningCluster]:
    """Run a cluster whose processes stand in a folder."""
    # The paths of its sockets must not be long.
    temp_dir = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, client_port = find_port(), find_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=3"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}", f"--temp-dir={temp_dir}"]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen([*command, "--include-dashboard=false"], cwd=folder, stdout=log, stderr=log)
    try:
        _wait_until_it_answers(client_port, head, folder / "log")
        yield RunningCluster(f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}", temp_dir)
    finally:
        head.terminate()
        head.wait(PATIENCE_S)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _wait_until_it_answers(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"the cluster does not answer: {log.read_text()}")
