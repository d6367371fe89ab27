"""What kills.py does to `akidb-mlx bulk` on a cluster of this machine: to runs while they write, and to their workers.

Every row has to be there at most once after the kill, and exactly once after the same command once more; a run that
loses a worker ends well by itself.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kills_chroma import run_server
from kills_rounds import PATIENCE_S, Tally
from ray_fixtures import run_cluster

_ROWS = 12_000
_WORKER = b"ray::MapWorker(MapBatches(TextEmbedder))"
_LOOK_S = 0.1


@dataclass
class Run:
    """One run of the command into a target of its own.

    Attributes:
        folder: with the input, and the LanceDB database.
        address: of the cluster.
        port: of the Chroma server; None: the target is a table.
        name: of the table or collection.
        workers: how many embed.
    """

    folder: Path
    address: str
    port: int | None
    name: str
    workers: int

    def start(self) -> subprocess.Popen[str]:
        """Start the command, with the stand-in model."""
        target = f"lancedb://db/{self.name}" if self.port is None else f"chroma://127.0.0.1:{self.port}/{self.name}"
        command = [sys.executable, "-m", "akidb_mlx_plugin", "bulk", "--input", "in.jsonl", "--to", target]
        command += ["--address", self.address, "--workers", str(self.workers), "--dimension", "8"]
        env = {**os.environ, "AKIDB_EMBEDDING__MODE": "mock"}
        return subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def texts(self) -> list[tuple[str, str]] | None:
        """Return the id and text of every record there is; None: there is no such table or collection."""
        return self._texts_of_table() if self.port is None else self._texts_of_collection(self.port)

    def _texts_of_table(self) -> list[tuple[str, str]] | None:
        import lancedb

        if not (self.folder / "db" / f"{self.name}.lance" / "_versions").exists():
            return None
        found = lancedb.connect(self.folder / "db").open_table(self.name).to_arrow()
        return list(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True))

    def _texts_of_collection(self, port: int) -> list[tuple[str, str]] | None:
        import chromadb
        from chromadb.errors import NotFoundError

        client = chromadb.HttpClient("127.0.0.1", port, settings=chromadb.Settings(anonymized_telemetry=False))
        try:
            collection = client.get_collection(self.name)
        except NotFoundError:
            return None
        found: list[tuple[str, str]] = []
        for offset in range(0, collection.count(), 5000):
            page: Any = collection.get(limit=5000, offset=offset, include=["documents"])
            found += zip(page["ids"], page["documents"], strict=True)
        return found

    def look(self) -> str:
        """Return how much is there, once every record was checked."""
        found = self.texts() or []
        twice = [id_ for id_, count in Counter(id_ for id_, _ in found).items() if count > 1]
        assert not twice, f"{len(twice)} ids are there twice, {twice[0]!r} for one"
        wrong = [id_ for id_, text in found if text != f"text {id_[1:]}"]
        assert not wrong, f"{len(wrong)} records have another's text, {wrong[0]!r} for one"
        return "all" if len(found) == _ROWS else "a part" if found else "nothing"


def measure_all(kills: int, seed: int) -> Iterator[Tally]:
    """Kill runs into LanceDB and Chroma, and workers of runs, with one worker and with two."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        rows = [json.dumps({"id": f"d{n}", "text": f"text {n}"}) for n in range(_ROWS)]
        (folder / "in.jsonl").write_text("\n".join(rows))
        # The cluster answers to these runs alone, and what it starts imports what this process does.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with run_cluster(folder) as cluster, run_server(folder) as port:
            for place in (None, port):
                undisturbed = Run(folder, cluster.address, place, "undisturbed", 1)
                longest_s = _measure(undisturbed)
                for victim, workers in (("run", 1), ("run", 2), ("worker", 1), ("worker", 2)):
                    tally = Tally(f"bulk into {'LanceDB' if place is None else 'Chroma'}, the {victim} killed", workers)
                    chance = random.Random(f"{seed} {tally.what} {workers}")
                    number = 0
                    while tally.kills < kills:
                        number += 1
                        run = replace(undisturbed, name=f"{victim}-{workers}-{number}", workers=workers)
                        _run_round(run, victim, chance.uniform(0, longest_s[victim]), chance, tally)
                    yield tally


def _measure(run: Run) -> dict[str, float]:
    """Return how long an undisturbed run lives once it embeds, and its workers."""
    process = run.start()
    begun = _wait_for_writing(process)
    while _find_workers() and process.poll() is None:
        time.sleep(_LOOK_S)
    workers_s = time.perf_counter() - begun
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    return {"run": time.perf_counter() - begun, "worker": workers_s}


def _run_round(run: Run, victim: str, delay_s: float, chance: random.Random, tally: Tally) -> None:
    """Kill a run or a worker so long after it began to write, look, and run the command again."""
    process = run.start()
    _wait_for_writing(process)
    time.sleep(delay_s)
    hit = _kill(process, victim, chance)
    process.communicate(timeout=PATIENCE_S)
    tally.kills += hit
    try:
        state = run.look()
        if hit:
            tally.found[state] += 1
        assert victim == "run" or process.returncode == 0, f"a run that lost a worker ended with {process.returncode}"
        assert state == "all" or process.returncode, f"a run has ended well, but there is {state}"
        if process.returncode:
            again = run.start()
            _, errors = again.communicate(timeout=PATIENCE_S)
            assert again.returncode == 0, f"the same command once more failed: {errors.strip()[-300:]}"
            state = run.look()
            assert state == "all", f"after the same command once more there is {state}"
    except AssertionError as error:
        tally.faults.append(str(error))


def _wait_for_writing(process: subprocess.Popen[str]) -> float:
    """Wait until workers embed, which is when writing is about to begin; return the time."""
    while process.poll() is None and not _find_workers():
        time.sleep(_LOOK_S)
    return time.perf_counter()


def _kill(process: subprocess.Popen[str], victim: str, chance: random.Random) -> bool:
    """Kill the run, or one of its workers; return whether it was there."""
    if victim == "run":
        there = process.poll() is None
        process.kill()
        return there
    workers = _find_workers()
    with suppress(ProcessLookupError):
        if workers and process.poll() is None:
            os.kill(chance.choice(workers), signal.SIGKILL)
            return True
    return False


def _find_workers() -> list[int]:
    """Return the processes that embed, in this cluster alone: its token is in their environment."""
    token = os.environ["RAY_AUTH_TOKEN"].encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if not entry.name.isdigit() or not (entry / "cmdline").read_bytes().startswith(_WORKER):
                continue
            if token in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found
