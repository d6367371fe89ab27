"""A document that loses its text is never lost itself, whatever ends the process, in a real Chroma of each kind."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import chromadb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, aupsert, create_collection, get_collection, reembed, upsert
from chromadb.api import ClientAPI
from chromadb.errors import AuthorizationError, InternalError
from collection_helpers import run_killed
from host_helpers import run_python

from akidb_mlx_plugin import Document, UpsertError

pytest_plugins = ("host_fixtures", "collection_fixtures")

D = 8
OLD = {"x": [1], "y": "kept"}


@pytest.fixture
def docs(chroma: ClientAPI, name: str) -> chromadb.Collection:
    made = create_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=D))
    upsert(made, [Document("a", "the only copy", metadata=OLD), Document("b", "other")])
    made.update(ids=["a"], uris=["file:///a"])
    return made


def read(collection: chromadb.Collection) -> dict[str, tuple[Any, Any, Any]]:
    """Return text, metadata and URI of every record, by id."""
    found: Any = collection.get(include=["documents", "metadatas", "uris"])
    return dict(zip(found["ids"], zip(found["documents"], found["metadatas"], found["uris"], strict=True), strict=True))


BEFORE = {"a": ("the only copy", OLD, "file:///a"), "b": ("other", None, None)}
AFTER = {"a": (None, {"z": 1}, "file:///a"), "b": ("other", None, None)}
NEW = Document("a", vector=[1.0] * D, metadata={"z": 1})


class Dead(BaseException):
    """The process ended here, as far as the code can tell."""


def die(monkeypatch: pytest.MonkeyPatch, step: int, *, done: bool, error: type[BaseException] = Dead) -> None:
    """Let the process die at one of the writes, before it or when it is done; nothing works after that."""
    calls: list[str] = []

    def dying(method: str) -> Callable[..., Any]:
        write = getattr(chromadb.Collection, method)

        def call(self: chromadb.Collection, **values: Any) -> Any:
            calls.append(method)
            if len(calls) > step:
                raise error("dead")
            if len(calls) == step:
                if done:
                    write(self, **values)
                raise error("dead")
            return write(self, **values)

        return call

    for method in ("add", "upsert", "delete"):
        monkeypatch.setattr(chromadb.Collection, method, dying(method))


# The writes: keep the old one elsewhere, delete it, add the new one, delete what was kept.
@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [Dead, OSError])
def test_old_or_new_at_every_step(
    chroma: ClientAPI,
    docs: chromadb.Collection,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    done: bool,
    error: type[BaseException],
) -> None:
    with monkeypatch.context() as dying:
        die(dying, step, done=done, error=error)
        with pytest.raises((Dead, UpsertError)):
            upsert(docs, [NEW])
    there = read(docs)
    # Whoever looks before the next opening finds it, if need be under another id.
    assert "the only copy" in [text for text, _, _ in there.values()] or there["a"] == AFTER["a"]
    opened = get_collection(chroma, docs.name)
    is_new = (step, done) in ((3, True), (4, False), (4, True))
    assert read(opened) == (AFTER if is_new else BEFORE)
    upsert(opened, [NEW])
    assert read(opened) == AFTER


@pytest.mark.slow
def test_a_failed_write_is_undone_at_once(docs: chromadb.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = chromadb.Collection.add, []

    def fail_once(self: chromadb.Collection, **values: Any) -> None:
        calls.append(values)
        if len(calls) == 2:
            raise OSError("connection lost")
        add(self, **values)

    monkeypatch.setattr(chromadb.Collection, "add", fail_once)
    with pytest.raises(UpsertError, match=r"0 documents are in, 1 are not, from 'a' on: connection lost"):
        upsert(docs, [NEW])
    assert read(docs) == BEFORE


@pytest.mark.slow
def test_what_cannot_be_brought_back_is_told(docs: chromadb.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as failing:
        die(failing, 3, done=False, error=OSError)
        with pytest.raises(UpsertError, match=r"for example 'a', and could not be restored .*'akidb_mlx:kept:'"):
            upsert(docs, [NEW])
    assert docs.get(where={"akidb_mlx:kept": 1})["documents"] == ["the only copy"]
    assert upsert(docs, [Document("c", "c")]).inserted == 1
    assert read(docs) == {**BEFORE, "c": ("c", None, None)}


def keep_by(docs: chromadb.Collection, owner: str) -> str:
    """Add what a process would have left behind that took "lost" out."""
    kept = {"akidb_mlx:kept": 1, "akidb_mlx:kept_id": "lost", "akidb_mlx:kept_by": owner}
    docs.add(ids=["akidb_mlx:kept:1"], documents=["text"], embeddings=[[1.0] * D], metadatas=[kept])
    return "lost"


@pytest.mark.slow
def test_what_another_process_is_working_on_is_left_alone(chroma: ClientAPI, docs: chromadb.Collection) -> None:
    # The parent of this process lives.
    keep_by(docs, f"{socket.gethostname()}:{os.getppid()}:{time.time():.0f}")
    assert "lost" not in read(get_collection(chroma, docs.name))
    docs.delete(ids=["akidb_mlx:kept:1"])
    keep_by(docs, f"another-machine:1:{time.time():.0f}")
    assert "lost" not in read(get_collection(chroma, docs.name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner",
    [
        f"{socket.gethostname()}:{2**22 + 1}:{time.time() + 100:.0f}",
        f"another-machine:1:{time.time() - 61:.0f}",
        "",
        "a",
        "a:b:c",
        f"{socket.gethostname()}:{2**70}:{time.time():.0f}",
        f"{socket.gethostname()}:-1:{time.time():.0f}",
        f"another-machine:1:{time.time() + 1e6:.0f}",
        "host:1:nan",
    ],
    # Names of their own: the moment in a value would make them others in each of the processes that run the tests.
    ids=range(9),
)
def test_what_nobody_works_on_is_brought_back(docs: chromadb.Collection, owner: str) -> None:
    keep_by(docs, owner)
    upsert(docs, [Document("c", "c")])
    assert read(docs) == {**BEFORE, "c": ("c", None, None), "lost": ("text", None, None)}


@pytest.mark.slow
def test_of_two_kept_by_two_processes_the_later_is_brought_back(docs: chromadb.Collection) -> None:
    for number, (begun, text) in enumerate((("1000.5", "newest"), ("1000.25", "older"), ("nan", "oldest"))):
        kept = {"akidb_mlx:kept": 1, "akidb_mlx:kept_id": "lost", "akidb_mlx:kept_by": f"host:1:{begun}"}
        docs.add(ids=[f"akidb_mlx:kept:{number}"], documents=[text], embeddings=[[1.0] * D], metadatas=[kept])
    upsert(docs, [Document("c", "c")])
    assert read(docs) == {**BEFORE, "c": ("c", None, None), "lost": ("newest", None, None)}


@pytest.mark.slow
def test_who_may_only_read_can_open_it(
    chroma: ClientAPI, docs: chromadb.Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: chromadb.Collection, **values: Any) -> None:
        raise AuthorizationError("read only")

    keep_by(docs, "")
    monkeypatch.setattr(chromadb.Collection, "add", refuse)
    assert get_collection(chroma, docs.name).get(ids=["a"])["ids"] == ["a"]
    assert "could not be restored: read only" in caplog.text


@pytest.mark.slow
def test_a_reembedding_brings_it_back_and_copies_no_second_one(docs: chromadb.Collection) -> None:
    function = MLXEmbeddingFunction(mode="mock", dimension=16)
    keep_by(docs, "")
    assert sorted(read(reembed(docs, function))) == ["a", "b", "lost"]
    keep_by(docs, f"another-machine:1:{time.time():.0f}")
    assert sorted(read(reembed(docs, function, name=f"{docs.name}-2"))) == ["a", "b", "lost"]


class TestNoIndexYet:
    """What a server answers while a collection's first vector is being written."""

    ERROR = InternalError(
        "Error executing plan: Internal error: Error creating hnsw segment reader: Nothing found on disk"
    )

    def fail(self, monkeypatch: pytest.MonkeyPatch, times: int) -> list[Any]:
        get, failed = chromadb.Collection.get, []

        def fail(collection: chromadb.Collection, **values: Any) -> Any:
            if "embeddings" in values.get("include", ()) and len(failed) < times:
                failed.append(values)
                raise self.ERROR
            return get(collection, **values)

        monkeypatch.setattr(chromadb.Collection, "get", fail)
        return failed

    @pytest.mark.slow
    def test_it_is_waited_for(self, docs: chromadb.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
        failed = self.fail(monkeypatch, 2)
        assert upsert(docs, [Document("b", "other")], skip_unchanged=True).skipped == 1
        assert len(failed) == 2

    @pytest.mark.slow
    def test_what_does_not_pass_is_told(self, docs: chromadb.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail(monkeypatch, 100)
        with pytest.raises(UpsertError, match="Nothing found on disk"):
            upsert(docs, [Document("b", "other")], skip_unchanged=True)

    @pytest.mark.slow
    def test_without_records_there_is_nothing_to_wait_for(
        self, chroma: ClientAPI, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        empty = create_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=D))
        self.fail(monkeypatch, 100)
        assert upsert(empty, [Document("b", "other")], skip_unchanged=True).inserted == 1


@pytest.mark.slow
async def test_the_asynchronous_client(chroma_port: int, name: str) -> None:
    client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
    function: Any = MLXEmbeddingFunction(mode="mock", dimension=D)
    remote = await client.create_collection(name, embedding_function=function)
    await aupsert(remote, [Document("a", "the only copy"), Document("b", "b")])
    keep_by(chromadb.HttpClient("127.0.0.1", chroma_port).get_collection(name), "")
    await aupsert(remote, [NEW])
    found: Any = await remote.get()
    assert dict(zip(found["ids"], found["documents"], strict=True)) == {"a": None, "b": "b", "lost": "text"}


@pytest.mark.slow
def test_threads_that_replace_one_document(docs: chromadb.Collection) -> None:
    versions = [
        Document("a", vector=[1.0] * D, metadata={"v": 0, "only in 0": 1}),
        Document("a", "text 1", metadata={"v": 1, "only in 1": 1}),
        Document("a", "text 2", metadata={"v": 2}),
        Document("a", vector=[2.0] * D),
    ]

    def write(version: Document) -> None:
        for _ in range(5):
            upsert(docs, [version])

    threads = [threading.Thread(target=write, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text, metadata, uri = read(docs)["a"]
    assert (text, metadata or None) in [(version.text, version.metadata) for version in versions]
    assert uri == "file:///a"
    assert len(read(docs)) == 2


@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path: Any) -> None:
    run_killed(
        """
import os, signal, sys
import chromadb
from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, upsert
from akidb_mlx_plugin import Document

docs = create_collection(chromadb.PersistentClient(sys.argv[1]), "docs", MLXEmbeddingFunction(mode="mock", dimension=8))
upsert(docs, [Document("a", "the only copy", metadata={"x": 1})])
delete = chromadb.Collection.delete
def dying(self, **values):
    delete(self, **values)
    os.kill(os.getpid(), signal.SIGKILL)
chromadb.Collection.delete = dying
upsert(docs, [Document("a", vector=[1.0] * 8)])
        """,
        tmp_path,
    )
    client = chromadb.PersistentClient(tmp_path)
    assert client.get_collection("docs").get()["documents"] == ["the only copy"]
    assert read(get_collection(client, "docs")) == {"a": ("the only copy", {"x": 1}, None)}


@pytest.mark.slow
def test_a_second_process_in_one_folder_is_told(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    write = """
    import sys, chromadb, logging
    log = []
    handler = logging.Handler()
    handler.emit = lambda record: log.append(record.getMessage())
    logging.getLogger("akidb_mlx_chroma").addHandler(handler)
    from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, upsert
    from akidb_mlx_plugin import Document
    function = MLXEmbeddingFunction(mode="mock", dimension=8)
    docs = create_collection(chromadb.PersistentClient(sys.argv[1]), "docs", function, get_or_create=True)
    upsert(docs, [Document("a", "a")])
    upsert(docs, [Document("b", "b")])
    print(*log, sep="\\n")
    """
    with caplog.at_level(logging.WARNING):
        function = MLXEmbeddingFunction(mode="mock", dimension=D)
        docs = create_collection(chromadb.PersistentClient(tmp_path), "docs", function)
        upsert(docs, [Document("c", "c")])
    assert "another process" not in caplog.text
    assert run_python(write, tmp_path).count(f"another process is writing to the Chroma folder {tmp_path} too") == 1
