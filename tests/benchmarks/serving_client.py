"""A client process for serving.py: embeds what it is told to, and tells when it is done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from akidb_mlx_plugin import EmbeddingConfig, EmbeddingService
from akidb_mlx_plugin.benchmarks.drift import Sample


class Client:
    """A process with a service of its own."""

    def __init__(self, model: str, url: str) -> None:
        """Start it; it embeds a text, and then waits.

        Args:
            model: the model's name.
            url: the server's address; empty for a copy of the model in the process.
        """
        self._folder = tempfile.TemporaryDirectory()
        self._vectors = Path(self._folder.name) / "vectors.npy"
        command = [sys.executable, __file__, model, url, str(self._vectors)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate("")
        self._folder.cleanup()

    def embed(self, texts: Sequence[str]) -> None:
        """Tell it to embed texts."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Return when it is done."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            sys.exit("a client ended early")

    def read_vectors(self) -> np.ndarray:
        """Return the vectors of the last texts."""
        return np.load(self._vectors)


def resources_of(pid: int, at_s: float = 0.0) -> Sample:
    """Return what a process uses; of memory that it shares with others, its part (Linux)."""
    folder = Path("/proc", str(pid))
    found = re.search(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    threads, descriptors = (len(os.listdir(folder / name)) for name in ("task", "fd"))
    return Sample(at_s, int(found[1]) * 1024, threads, descriptors)


def main() -> None:
    """Embed a line of texts at a time."""
    model, url, vectors = sys.argv[1:]
    remote = {"url": url} if url else {}
    with EmbeddingService(EmbeddingConfig.load(overrides={"mlx": {"model": model}, "remote": remote})) as service:
        service.embed_batch(["ready"])
        print("done", flush=True)
        for line in sys.stdin:
            np.save(vectors, service.embed_batch(json.loads(line)).embeddings)
            print("done", flush=True)


if __name__ == "__main__":
    main()
