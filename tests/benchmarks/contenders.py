"""Who is compared, and the processes they run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).parent
_ROOT = HERE.parent.parent


class PeerMissingError(RuntimeError):
    """A peer is not installed, or cannot run here."""


@dataclass(frozen=True)
class Contender:
    """One package on one checkpoint.

    Attributes:
        name: as the table has it.
        module: of `peers`.
        folder: its checkpoint.
        batch_sizes: it is measured with the fastest of these; empty: it chooses by itself.
        blas: a library loaded before it; "": none.
    """

    name: str
    module: str
    folder: Path
    batch_sizes: tuple[int, ...] = ()
    blas: str = ""


@dataclass(frozen=True)
class Timing:
    """What one turn took.

    Attributes:
        seconds: of the call, or of each text where they went one by one.
        cpu_seconds: processor time of all threads, of which some may have waited spinning.
        peak_bytes: most memory of the process so far.
    """

    seconds: list[float]
    cpu_seconds: float
    peak_bytes: int


class Worker:
    """A contender's process; usable as a context manager."""

    def __init__(self, contender: Contender, python: str, cores: int) -> None:
        """Start it, and wait until it has loaded its model.

        Raises:
            PeerMissingError: it cannot be loaded.
        """
        self.contender = contender
        self.batch_size: int | None = None
        self._errors: TextIO = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        command = [python, "-m", "peers.worker", contender.module, str(contender.folder), "--cores", str(cores)]
        command += ["--blas", contender.blas] if contender.blas else []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=peer_environment(contender.module),
        )
        try:
            message = self._read()
            if "error" in message:
                raise PeerMissingError(f"{contender.name}: {message['error']}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def embed(self, texts: Path, *, apart: bool = False, save: Path | None = None) -> Timing:
        """Embed the texts of a JSON file.

        Args:
            texts: a list of strings.
            apart: one call for each.
            save: where the vectors go.
        """
        request = {"texts": str(texts), "batch_size": self.batch_size, "apart": apart, "save": str(save or "")}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        message = self._read()
        return Timing(message["seconds"], message["cpu_seconds"], message["peak_bytes"])

    def choose_batch_size(self, texts: Path) -> None:
        """Take the fastest of the contender's batch sizes on these texts."""
        found: dict[int, float] = {}
        for batch_size in self.contender.batch_sizes:
            self.batch_size = batch_size
            found[batch_size] = sum(self.embed(texts).seconds)
        if found:
            self.batch_size = min(found, key=lambda size: found[size])

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise PeerMissingError(f"{self.contender.name} ended: {last[0]}")
        message: dict[str, Any] = json.loads(line)
        return message


def peer_environment(module: str) -> dict[str, str]:
    """Return the environment of a contender's process: offline, and this package on the path for its own alone."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    own = [str(_ROOT), str(_ROOT / "integrations")] if module.startswith("ours") else []
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *own])
    return environment


def real_blas(python: str) -> str:
    """Return the library that an MLX peer gets in front of the reference BLAS: MKL of its interpreter, else OpenBLAS.

    Raises:
        PeerMissingError: there is none.
    """
    if sys.platform == "darwin":
        return ""
    program = "import sys, glob; print(*glob.glob(sys.prefix + '/lib/libmkl_rt.so*'), 'libopenblas.so.0')"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    for library in found:
        probe = subprocess.run(
            [python, "-c", f"import ctypes; ctypes.CDLL({library!r})"], capture_output=True, check=False
        )
        if probe.returncode == 0:
            return library
    raise PeerMissingError("no BLAS found: pip install mkl, or apt install libopenblas0-pthread")


@dataclass(frozen=True)
class Interpreters:
    """Which Python each contender runs in: its own, else the one given for all peers, else this one."""

    given: Mapping[str, str]

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> Interpreters:
        """Read NAME=PATH pairs."""
        split = [pair.partition("=") for pair in pairs]
        for name, separator, path in split:
            if not separator or not Path(path).exists():
                raise SystemExit(f"--python takes NAME=PATH of an interpreter, got {name}{separator}{path}")
        return cls({name: path for name, _, path in split})

    def of(self, module: str) -> str:
        """Return the interpreter for a module of `peers`."""
        if module.startswith("ours"):
            return self.given.get("ours", sys.executable)
        return self.given.get(module, self.given.get("peers", sys.executable))
