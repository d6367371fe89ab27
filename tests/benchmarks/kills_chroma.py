"""What SIGKILL does to upserts and re-embeddings in Chroma: at random moments, on disk and against a server.

    python tests/benchmarks/kills.py chroma              # 20 kills of each kind
    python tests/benchmarks/kills_chroma.py --kills 5 --only folder --json

Documents change their text, lose it and get it back from version to version. After a kill each must be there once,
whole, in the old version or the new one; after the same call once more, in the new one. Against a server, two processes
do the same work at the same time, and one or both are killed; a folder of Chroma's is for one process. The exit status
is 1 where anything was lost, doubled or mixed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_DIMENSION = 8
_DOCUMENTS = 60
_BATCH = 20
_PATIENCE_S = 60.0
# Children are copies of a process that has imported everything and opened nothing.
_PROCESSES = mp.get_context("forkserver")
_PRELOADED = ["chromadb", "akidb_mlx_chroma.reembedding", "akidb_mlx_plugin.providers.mock"]
# A folder, or the port of a server.
Place = str | int
# Text, metadata and vector.
Row = tuple[str | None, dict[str, Any] | None, list[float]]


@dataclass
class Tally:
    """What became of some kills.

    Attributes:
        what: was killed.
        processes: that worked at the same time.
        kills: that hit a process at work.
        unfinished: after which documents were still in the old version, or missing in a new collection.
        brought_back: records that a dead process had taken out, and the next opening put back.
        faults: what was lost, doubled or mixed, in words.
    """

    what: str
    processes: int
    kills: int = 0
    unfinished: int = 0
    brought_back: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line, and a line for each of the first faults."""
        line = (
            f"{self.what}, {self.processes} at once: {self.kills} kills, {self.unfinished} rounds cut short, "
            f"{self.brought_back} records brought back, {len(self.faults)} faults"
        )
        return "\n    ".join([line, *self.faults[:5]])


def connect(place: Place) -> Any:
    """Return a client."""
    import chromadb

    settings = chromadb.Settings(anonymized_telemetry=False)
    if isinstance(place, int):
        return chromadb.HttpClient("127.0.0.1", place, settings=settings)
    return chromadb.PersistentClient(place, settings=settings)


def make_function(dimension: int = _DIMENSION) -> Any:
    """Return an embedding function that needs no model."""
    from akidb_mlx_chroma import MLXEmbeddingFunction

    return MLXEmbeddingFunction(mode="mock", dimension=dimension)


def make_document(number: int, version: int) -> Any:
    """Return a version of a document: with a text, with a vector and no text, or with both."""
    from akidb_mlx_plugin import Document

    kind, text = (number + version) % 3, f"text {number} in version {version}"
    vector = np.random.default_rng([number, version]).standard_normal(_DIMENSION).astype(np.float32)
    if kind == 0:
        return Document(f"d{number}", text, metadata={"version": version, "tags": ["a", "b"]})
    if kind == 1:
        return Document(f"d{number}", vector=vector, metadata={"version": version, f"only in {version}": True})
    return Document(f"d{number}", text, vector=vector)


def expected(number: int, version: int) -> Row:
    """Return what Chroma should have of a version of a document."""
    from akidb_mlx_plugin.providers.mock import hash_texts

    document = make_document(number, version)
    vector = document.vector if document.vector is not None else hash_texts([document.text], _DIMENSION)[0]
    return document.text, document.metadata, np.asarray(vector).tolist()


def read(collection: Any) -> list[tuple[str, Row]]:
    """Return every record of a collection with its id; an id may occur twice."""
    from akidb_mlx_chroma.clients import get_records, run_sync

    found = get_records(collection, run_sync, include=["documents", "metadatas", "embeddings"])
    rows = zip(found["documents"], found["metadatas"], np.asarray(found["embeddings"]).tolist(), strict=True)
    return list(zip(found["ids"], rows, strict=True))


def is_same(row: Row, wanted: Row) -> bool:
    """Return whether a record is a version of a document, all of it."""
    return row[:2] == wanted[:2] and bool(np.allclose(row[2], wanted[2], atol=1e-4))


def find_faults(rows: list[tuple[str, Row]], versions: dict[str, list[Row]], *, may_miss: bool = False) -> list[str]:
    """Return what is missing, there twice, foreign or mixed, given the versions each document may have."""
    ids = [id_ for id_, _ in rows]
    faults = [f"{id_} is there {ids.count(id_)} times" for id_ in sorted(set(ids)) if ids.count(id_) > 1]
    faults += [f"{id_} is nobody's" for id_ in ids if id_ not in versions]
    faults += [] if may_miss else [f"{id_} is lost" for id_ in versions if id_ not in ids]
    return faults + [
        f"{id_} is no version of it: {row}"
        for id_, row in rows
        if id_ in versions and not any(is_same(row, wanted) for wanted in versions[id_])
    ]


def prepare(place: Place) -> None:
    """Make the collection that upserts go to, in version 0, and the one that is re-embedded."""
    from akidb_mlx_chroma import create_collection, upsert

    from akidb_mlx_plugin import Document

    client = connect(place)
    upsert(create_collection(client, "docs", make_function()), [make_document(i, 0) for i in range(_DOCUMENTS)])
    source = create_collection(client, "source", make_function())
    upsert(source, [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(_DOCUMENTS)])
    source.update(ids=["d0"], uris=["file:///d0"])


def upsert_version(place: Place, version: int, ready: Any = None) -> None:
    """Upsert all documents in one version."""
    from akidb_mlx_chroma import get_collection, upsert

    collection = get_collection(connect(place), "docs")
    if ready is not None:
        ready.set()
    documents = [make_document(i, version) for i in range(_DOCUMENTS)]
    upsert(collection, documents, batch_size=_BATCH, skip_unchanged=ready is None)


def check_upsert(place: Place, version: int) -> tuple[bool, int, list[str]]:
    """Look at what a kill has left, finish the work, and look again: unfinished, brought back, faults."""
    from akidb_mlx_chroma import get_collection

    client = connect(place)
    left = [id_ for id_, _ in read(client.get_collection("docs")) if id_.startswith("akidb_mlx:")]
    rows = read(get_collection(client, "docs"))
    both = {f"d{i}": [expected(i, version - 1), expected(i, version)] for i in range(_DOCUMENTS)}
    faults = [f"after the kill: {fault}" for fault in find_faults(rows, both)]
    unfinished = any(is_same(row, both[id_][0]) for id_, row in rows if id_ in both)
    upsert_version(place, version)
    new = {id_: versions[1:] for id_, versions in both.items()}
    # Opened once more: the last request of a process that is dead may have reached the server late.
    return unfinished, len(left), faults + find_faults(read(get_collection(client, "docs")), new)


def reembed_source(place: Place, run: int, ready: Any = None) -> None:
    """Re-embed the source into a collection of its own."""
    from akidb_mlx_chroma import reembed

    source = connect(place).get_collection("source")
    if ready is not None:
        ready.set()
    reembed(source, make_function(2 * _DIMENSION), name=f"new-{run}", batch_size=_BATCH)


def check_reembed(place: Place, run: int) -> tuple[bool, int, list[str]]:
    """As `check_upsert`, for a re-embedding."""
    from chromadb.errors import NotFoundError

    from akidb_mlx_plugin.providers.mock import hash_texts

    client = connect(place)
    wide = hash_texts([f"text {i}" for i in range(_DOCUMENTS)], 2 * _DIMENSION)
    wanted: dict[str, list[Row]] = {
        f"d{i}": [(f"text {i}", {"n": i}, vector.tolist())] for i, vector in enumerate(wide)
    }
    rows: list[tuple[str, Row]] = []
    with suppress(NotFoundError):
        rows = [
            (id_, row) for id_, row in read(client.get_collection(f"new-{run}")) if not id_.startswith("akidb_mlx:")
        ]
    faults = [f"after the kill: {fault}" for fault in find_faults(rows, wanted, may_miss=True)]
    reembed_source(place, run)
    made = client.get_collection(f"new-{run}")
    faults += find_faults(read(made), wanted)
    if made.get(ids=["d0"], include=["uris"])["uris"] != ["file:///d0"]:
        faults.append("a URI is lost")
    client.delete_collection(f"new-{run}")
    return len(rows) < _DOCUMENTS, 0, faults


def _answer(pipe: Any, check: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(check(*arguments))


def ask(check: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function gives in a process of its own, which has Chroma's files to itself."""
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    child = _PROCESSES.Process(target=_answer, args=(theirs, check, arguments))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"{check.__name__}{arguments} ended with {error!r}; its message is above") from error
    finally:
        child.join()


def start(work: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
    """Return a process that works, and the event that it sets when it begins to write."""
    ready = _PROCESSES.Event()
    child = _PROCESSES.Process(target=work, args=(*arguments, ready))
    child.start()
    return child, ready


def kill_some(
    place: Place,
    work: Callable[..., None],
    check: Callable[..., Any],
    processes: int,
    kills: int,
    chance: random.Random,
) -> Iterator[tuple[int, Any]]:
    """Yield how many processes were killed in each round, and what was found; as many rounds as it takes."""
    done, number, longest_s = 0, 0, 0.0
    while done < kills:
        number += 1
        children = [start(work, place, number) for _ in range(processes)]
        for _, ready in children:
            if not ready.wait(_PATIENCE_S):
                raise RuntimeError("a process did not begin; its message is above")
        begun = time.perf_counter()
        # The first round is let run, to see how long it takes.
        hit = 0
        if longest_s:
            time.sleep(chance.uniform(0, longest_s))
            for child, _ in children[: chance.randint(1, processes)]:
                child.kill()
        for child, _ in children:
            child.join()
            hit += child.exitcode == -signal.SIGKILL
            if child.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"a process failed with {child.exitcode}; its message is above")
        longest_s = longest_s or time.perf_counter() - begun
        done += hit
        yield hit, ask(check, place, number)


def measure(place: Place, what: str, processes: int, kills: int, seed: int) -> Tally:
    """Kill so many processes, and return what became of it."""
    work, check = (upsert_version, check_upsert) if what == "upsert" else (reembed_source, check_reembed)
    where = "a server" if isinstance(place, int) else "a folder"
    tally = Tally(f"{what}, {where}", processes)
    for hit, (unfinished, brought_back, faults) in kill_some(
        place, work, check, processes, kills, random.Random(f"{seed} {what} {where} {processes}")
    ):
        tally.kills += hit
        tally.unfinished += bool(hit and unfinished)
        tally.brought_back += brought_back
        tally.faults += faults
    return tally


@contextmanager
def run_server(folder: Path) -> Iterator[int]:
    """Run a Chroma server, and yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    beside = Path(sys.executable).with_name("chroma")
    program = str(beside) if beside.exists() else str(shutil.which("chroma"))
    command = [program, "run", "--path", str(folder / "server"), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        for attempt in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if attempt == 599 or server.poll() is not None:
                raise RuntimeError("the Chroma server does not answer")
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def measure_all(kills: int, seed: int, only: str | None = None) -> Iterator[Tally]:
    """Kill upserts and re-embeddings in a folder, and by two processes at a server; yield what became of it."""
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        if only != "server":
            place = str(Path(folder) / "files")
            ask(prepare, place)
            for what in ("upsert", "reembed"):
                yield measure(place, what, 1, kills, seed)
        if only != "folder":
            with run_server(Path(folder)) as port:
                ask(prepare, port)
                for what in ("upsert", "reembed"):
                    yield measure(port, what, 2, kills, seed)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["folder", "server"], help="one place alone")
    arguments = parser.parse_args()
    tallies = []
    for tally in measure_all(arguments.kills, arguments.seed, arguments.only):
        tallies.append(tally)
        if not arguments.json:
            print(tally, flush=True)
    if arguments.json:
        print(json.dumps([asdict(tally) for tally in tallies], indent=2))
    return int(any(tally.faults for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
