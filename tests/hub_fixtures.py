"""What the tests of downloads and cache share: a loopback hub, an empty cache, other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub

from akidb_mlx_plugin.hub import retries


class Child:
    """Another Python process, its output read line by line."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def read_until(self, text: str) -> None:
        """Wait for a line that contains a text."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} never came: {''.join(seen)}")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.communicate()


Spawn = Callable[[str], Child]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that HF_ENDPOINT points to, no other cache on the machine, and no waiting between attempts."""
    from huggingface_hub import constants

    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
        # It asks the public hub for a list of agents otherwise.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "AKIDB_ALLOWED_MODELS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(retries, "BACKOFF_S", 0.01)
        yield server


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model cache, the default one while the test runs."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Run Python code in other processes, which end with the test."""
    children: list[Child] = []

    def start(code: str) -> Child:
        children.append(Child(code))
        return children[-1]

    yield start
    for child in children:
        child.kill()
