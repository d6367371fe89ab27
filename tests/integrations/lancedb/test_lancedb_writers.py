"""Several who write to one LanceDB table, by handles, threads, processes: every id is there once, the newest wins."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import akidb_mlx_lancedb.store
import lancedb
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, aupsert, create_table, reembed, table_schema, upsert
from collection_helpers import EmbeddedByMock
from host_helpers import PATIENCE_S

from akidb_mlx_plugin import Document, InvalidInputError, UpsertError

pytest_plugins = ("collection_fixtures",)

D = 8
VECTOR = [1.0] * D


def texts(db: Any) -> list[tuple[str, str]]:
    return sorted((row["id"], row["text"]) for row in db.open_table("docs").to_arrow().to_pylist())


def ids(db: Any) -> list[str]:
    return sorted(db.open_table("docs").to_arrow()["id"].to_pylist())


class TestOldHandles:
    def test_two_writers_one_after_the_other(self, db: Any, docs: Any) -> None:
        one, two = db.open_table("docs"), db.open_table("docs")
        upsert(one, [Document("new", "first")])
        upsert(two, [Document("new", "second")])
        assert texts(db) == [("new", "second")]

    async def test_the_same_for_asynchronous_tables(self, db: Any, docs: Any) -> None:
        connection = await lancedb.connect_async(db.uri)
        one, two = [await connection.open_table("docs") for _ in range(2)]
        await aupsert(one, [Document("new", "first")])
        await aupsert(two, [Document("new", "second")])
        assert (await aupsert(one, [Document("new", "second")], skip_unchanged=True)).skipped == 1
        assert texts(db) == [("new", "second")]

    def test_unchanged_is_what_the_newest_version_has(self, db: Any, docs: Any) -> None:
        upsert(docs, [Document("old", "v1")])
        one, two = db.open_table("docs"), db.open_table("docs")
        upsert(one, [Document("old", "v2")])
        assert upsert(two, [Document("old", "v1")], skip_unchanged=True).inserted == 1
        assert texts(db) == [("old", "v1")]
        one.delete("id = 'old'")
        assert upsert(two, [Document("old", "v1")], skip_unchanged=True).inserted == 1
        assert texts(db) == [("old", "v1")]

    def test_what_another_writes_between_two_chunks(self, db: Any, docs: Any) -> None:
        other = db.open_table("docs")

        def stream() -> Iterator[Document]:
            yield Document("a", "a")
            upsert(other, [Document("b", "theirs")])
            yield Document("b", "ours")

        upsert(docs, stream(), batch_size=1)
        assert texts(db) == [("a", "a"), ("b", "ours")]

    def test_columns_that_were_added_meanwhile(self, db: Any, docs: Any) -> None:
        db.open_table("docs").add_columns({"year": "cast(0 as bigint)"})
        upsert(docs, [Document("a", "a", metadata={"year": 2024})])
        assert docs.to_arrow()["year"].to_pylist() == [2024]

    def test_reembed_reads_the_newest_version(self, db: Any, docs: Any) -> None:
        old = db.open_table("docs")
        upsert(docs, [Document("a", "a")])
        made = reembed(old, MLXEmbeddings.create(mode="mock", dimension=16), name="next")
        assert made.count_rows() == 1

    def test_reembed_sees_a_change_during_the_run(self, db: Any, docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        upsert(docs, [Document("a", "a"), Document("b", "b")])
        write = akidb_mlx_lancedb.store.LanceStore.write

        def change(self: Any, documents: Any, vectors: Any) -> None:
            write(self, documents, vectors)
            db.open_table("docs").update(where="id = 'a'", values={"text": "changed"})

        monkeypatch.setattr(akidb_mlx_lancedb.store.LanceStore, "write", change)
        new = MLXEmbeddings.create(mode="mock", dimension=16)
        with pytest.raises(UpsertError, match=r"1 of 2 documents.*for example 'a'") as raised:
            reembed(docs, new, name="next")
        assert raised.value.not_written == ["a"]
        monkeypatch.undo()
        assert reembed(docs, new, name="next").search("changed").limit(1).to_list()[0]["id"] == "a"


class TestCheckedOut:
    def test_nothing_is_done(self, db: Any, docs: Any, mocked: EmbeddedByMock) -> None:
        upsert(docs, [Document("a", "a")])
        version = docs.version
        upsert(docs, [Document("b", "b")])
        mocked.clear()
        docs.checkout(version)
        new = MLXEmbeddings.create(mode="mock", dimension=16)
        for refused in (
            lambda: upsert(docs, [Document("b", "c")]),
            lambda: asyncio.run(aupsert(docs, [Document("b", "c")])),
            lambda: reembed(docs, new, name="next"),
        ):
            with pytest.raises(InvalidInputError, match=r"'docs' is checked out .*checkout_latest.*restore"):
                refused()
        assert (mocked, docs.version, db.list_tables().tables) == ([], version, ["docs"])
        docs.checkout_latest()
        upsert(docs, [Document("b", "c")])
        assert texts(db) == [("a", "a"), ("b", "c")]

    async def test_an_asynchronous_table(self, db: Any, docs: Any) -> None:
        table = await (await lancedb.connect_async(db.uri)).open_table("docs")
        await table.checkout(1)
        with pytest.raises(InvalidInputError, match="checked out"):
            await aupsert(table, [Document("a", "a")])

    def test_the_newest_version_checked_out_by_its_tag(self, docs: Any) -> None:
        docs.tags.create("now", docs.version)
        docs.checkout("now")
        with pytest.raises(InvalidInputError, match="checked out"):
            upsert(docs, [Document("a", "a")])


class TestThreads:
    def test_one_handle(self, db: Any, docs: Any) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: upsert(docs, [Document("page", f"edit {i}")]), range(8)))
        assert len(texts(db)) == 1

    @pytest.mark.slow
    def test_handles_of_their_own(self, db: Any, docs: Any) -> None:
        def write(number: int) -> None:
            documents = [Document(f"d{i}", vector=VECTOR, metadata={"by": number}) for i in range(50)]
            upsert(db.open_table("docs"), documents, batch_size=10)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        assert ids(db) == sorted(f"d{i}" for i in range(50))

    async def test_tasks(self, db: Any, mock: MLXEmbeddings) -> None:
        connection = await lancedb.connect_async(db.uri)
        table = await connection.create_table("docs", schema=table_schema(mock))
        await asyncio.gather(*(aupsert(table, [Document("page", f"edit {i}")]) for i in range(8)))
        assert await table.count_rows() == 1

    def test_a_table_in_memory(self, mock: MLXEmbeddings) -> None:
        table = create_table(lancedb.connect("memory://"), "docs", mock)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: upsert(table, [Document("page", f"edit {i}")]), range(8)))
        assert table.count_rows() == 1

    @pytest.mark.slow
    def test_a_primary_key_needs_no_lock(self, db: Any, docs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """LanceDB's own means, for writers on several machines: rows are typed as a key needs them."""

        @contextmanager
        def no_lock(table: Any) -> Iterator[None]:
            yield

        monkeypatch.setattr(akidb_mlx_lancedb.store, "write_lock", no_lock)
        docs.set_unenforced_primary_key("id")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: upsert(docs, [Document("page", f"edit {i}")]), range(8)))
        assert len(texts(db)) == 1
        made = reembed(docs, MLXEmbeddings.create(mode="mock", dimension=16), name="next")
        assert made.count_rows() == 1


_WRITER = """
import sys, lancedb
from akidb_mlx_lancedb import upsert
from akidb_mlx_plugin import Document

table = lancedb.connect(sys.argv[1]).open_table("docs")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    upsert(table, [Document(f"d{i}", vector=[1.0] * 8, metadata={"by": 1}) for i in range(40)], batch_size=4)
"""


class TestProcesses:
    @pytest.mark.slow
    def test_two_with_the_same_new_ids(self, db: Any, docs: Any) -> None:
        other = subprocess.Popen(
            [sys.executable, "-c", _WRITER, db.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        for _ in range(5):
            upsert(docs, [Document(f"d{i}", vector=VECTOR, metadata={"by": 0}) for i in range(40)], batch_size=4)
        assert other.wait(PATIENCE_S) == 0
        assert ids(db) == sorted(f"d{i}" for i in range(40))

    def test_two_that_make_one_table(self, db: Any, mock: MLXEmbeddings) -> None:
        def make(_: int) -> str:
            return str(create_table(lancedb.connect(db.uri), "same", mock, exist_ok=True).name)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(make, range(4))) == ["same"] * 4

    def test_the_lock_goes_with_the_table(self, db: Any, docs: Any, mock: MLXEmbeddings) -> None:
        upsert(docs, [Document("a", "a")])
        db.drop_table("docs")
        assert not (Path(db.uri) / "docs.lance").exists()
        upsert(create_table(db, "docs", mock), [Document("b", "b")])
        assert texts(db) == [("b", "b")]
