"""Metadata in a real Chroma: every value comes back equal, or is refused before anything is embedded."""

from __future__ import annotations

import decimal
import enum
import http
import uuid
from collections import OrderedDict, namedtuple
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pandas as pd
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, aupsert, create_collection, get_collection, upsert
from akidb_mlx_chroma.metadata import check_key, is_same_metadata, plain_metadata
from chromadb.api.types import SparseVector
from collection_helpers import EmbeddedByMock
from host_helpers import run_python

from akidb_mlx_plugin import Document, InvalidInputError

pytest_plugins = ("host_fixtures", "collection_fixtures")

D = 8


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = -3


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Ratio(float, enum.Enum):
    HALF = 0.5


class Plain(enum.Enum):
    ONE = 1


class Loud(str):
    """Says something else than it holds."""

    __slots__ = ()

    def __str__(self) -> str:
        return "loud"

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


class Odd(int):
    def __int__(self) -> int:
        return 7

    def __le__(self, other: object) -> bool:
        return True

    def __ge__(self, other: object) -> bool:
        return True


Point = namedtuple("Point", "x y")

# What goes in, and what is read back.
KEPT: list[tuple[Any, Any]] = [
    (True, True),
    (0, 0),
    (2**63 - 1, 2**63 - 1),
    (-(2**63), -(2**63)),
    (2**53 + 1, 2**53 + 1),
    (3.0, 3.0),
    (5e-324, 5e-324),
    (1.7976931348623157e308, 1.7976931348623157e308),
    ("", ""),
    ("a\x00b", "a\x00b"),
    ("\u2028\ufeff\U0001f600", "\u2028\ufeff\U0001f600"),
    (http.HTTPStatus.OK, 200),
    (Level.LOW, -3),
    (Flag.A | Flag.B, 3),
    (Odd(5), 5),
    (Color.RED, "red"),
    (Loud("quiet"), "quiet"),
    (Ratio.HALF, 0.5),
    (np.bool_(True), True),
    (np.int8(-5), -5),
    (np.uint64(2**63 - 1), 2**63 - 1),
    (np.float16(0.1), float(np.float16(0.1))),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64(0.1), 0.1),
    (np.longdouble(0.5), 0.5),
    (np.str_("text"), "text"),
    (np.array(4), 4),
    ([True, False], [True, False]),
    ([1, 2], [1, 2]),
    ([2**63 - 1], [2**63 - 1]),
    ([1.0, 2.5], [1.0, 2.5]),
    (["a", ""], ["a", ""]),
    (("a", "b"), ["a", "b"]),
    (Point(1, 2), [1, 2]),
    ([http.HTTPStatus.OK, 3], [200, 3]),
    ([Color.RED, "blue"], ["red", "blue"]),
    ([np.int64(1), 2], [1, 2]),
    ([np.float32(0.5), 1.5], [0.5, 1.5]),
    (np.array([1, 2], dtype=np.uint8), [1, 2]),
    (np.array([True]), [True]),
    (np.array(["a", "b"]), ["a", "b"]),
    (np.array(["a", "b"], dtype=object), ["a", "b"]),
]
REFUSED: list[tuple[Any, str]] = [
    (float("nan"), "finite"),
    (float("-inf"), "finite"),
    (np.float32("nan"), "finite"),
    ([0.5, float("nan")], "finite"),
    (np.array([float("inf")]), "finite"),
    (2**63, "64-bit integers; give it as a string"),
    (-(2**63) - 1, "64-bit integers"),
    (2**100_000, "integer of 100001 bits.*64-bit integers"),
    ([2**70], "64-bit integers"),
    (np.uint64(2**63), "64-bit integers"),
    (np.longdouble(1) / 3, r"float\(value\)"),
    ("\ud800", "surrogate"),
    (["é\ud800"], "surrogate"),
    ([], "leave the key out"),
    ((), "leave the key out"),
    (np.array([]), "leave the key out"),
    (["a", 1], "int and str"),
    ([1, 2.5], "float and int"),
    ([True, 1], "bool and int"),
    ([None], "null in a list"),
    ([[1]], r"list in a list; give json\.dumps"),
    (np.array([[1, 2]]), "ndarray in a list"),
    ([{"a": 1}], "dict in a list"),
    ({"a": 1}, r"dict; give each entry a key of its own, or json\.dumps"),
    (OrderedDict(), "OrderedDict"),
    ({1, 2}, r"sorted\(value\)"),
    (b"bytes", "decode"),
    (bytearray(b"bytes"), "decode"),
    (memoryview(b"bytes"), "decode"),
    (np.bytes_(b"bytes"), "decode"),
    (datetime(2024, 1, 1), "isoformat"),
    (datetime(2024, 1, 1, tzinfo=timezone.utc), "isoformat"),
    (date(2024, 1, 1), "isoformat"),
    ([date(2024, 1, 1)], "isoformat"),
    (pd.Timestamp("2024-01-01"), "isoformat"),
    (pd.NaT, "NaT"),
    (pd.NA, "NA"),
    (timedelta(seconds=1), "total_seconds"),
    (decimal.Decimal("0.1"), r"str\(value\)"),
    (1j, r"str\(value\)"),
    (uuid.uuid4(), r"str\(value\)"),
    (Plain.ONE, r"value\.value"),
    (np.ma.masked, "masked"),
    (np.ma.array([1, 2], mask=[True, False]), "masked"),
    (pd.Series([1, 2]), r"str\(value\)"),
    (np.zeros(1, dtype=[("a", "i4")])[0], "void"),
    (object(), r"str\(value\)"),
    (range(3), r"str\(value\)"),
    (SparseVector([1], [float("nan")]), "finite"),
    (SparseVector([1], [0.5]), "Chroma Cloud|Unimplemented|not supported"),
    *((np.datetime64(5, unit), r"datetime64; give str\(value\)") for unit in ("Y", "D", "s", "ms", "us", "ns", "ps")),
    (np.datetime64("NaT"), "datetime64"),
    (np.array(["2024-01-01"], dtype="datetime64[ns]"), "datetime64"),
    *((np.timedelta64(5, unit), "timedelta64") for unit in ("s", "us", "ns")),
]


def types_of(value: Any) -> Any:
    return [type(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.slow
def test_values_come_back_equal(docs: chromadb.Collection) -> None:
    documents = [Document(f"d{i}", "t", metadata={"x": given}) for i, (given, _) in enumerate(KEPT)]
    upsert(docs, documents)
    found = docs.get()
    read = {id_: (metadata or {})["x"] for id_, metadata in zip(found["ids"], found["metadatas"] or [], strict=True)}
    for i, (given, expected) in enumerate(KEPT):
        assert read[f"d{i}"] == expected, given
        assert types_of(read[f"d{i}"]) == types_of(expected), given
    assert upsert(docs, documents, skip_unchanged=True).skipped == len(KEPT)


@pytest.mark.slow
def test_other_values_are_refused_by_name(docs: chromadb.Collection, mocked: EmbeddedByMock) -> None:
    upsert(docs, [Document("a", "as it was", metadata={"x": 1})])
    mocked.clear()
    is_remote = "fastapi" in docs._client._system.settings.chroma_api_impl
    for value, message in REFUSED:
        if isinstance(value, SparseVector) and is_remote and "finite" not in message:
            continue  # only the server knows
        with pytest.raises(InvalidInputError, match=f"(?s)'b' cannot be stored.*{message}"):
            upsert(docs, [Document("a", "a"), Document("b", "b", metadata={"the key": value})])
    assert mocked == []
    assert docs.get()["metadatas"] == [{"x": 1}]


@pytest.mark.slow
async def test_the_asynchronous_client_keeps_and_refuses_the_same(chroma_port: int, name: str) -> None:
    client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
    function: Any = MLXEmbeddingFunction(mode="mock", dimension=D)
    remote = await client.create_collection(name, embedding_function=function)
    await aupsert(remote, [Document(f"d{i}", "t", metadata={"x": given}) for i, (given, _) in enumerate(KEPT)])
    found = await remote.get()
    read = dict(zip(found["ids"], found["metadatas"] or [], strict=True))
    assert read == {f"d{i}": {"x": expected} for i, (_, expected) in enumerate(KEPT)}
    for value, message in REFUSED[:20]:
        with pytest.raises(InvalidInputError, match=f"(?s)'b' cannot be stored.*{message}"):
            await aupsert(remote, [Document("b", "b", metadata={"x": value})])
    assert await remote.count() == len(KEPT)


@pytest.mark.slow
def test_an_int_enum_does_not_hang(tmp_path: Any) -> None:
    code = """
    import faulthandler, http, sys
    faulthandler.dump_traceback_later(50, exit=True)
    import chromadb
    from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, upsert
    from akidb_mlx_plugin import Document
    docs = create_collection(chromadb.EphemeralClient(), "docs", MLXEmbeddingFunction(mode="mock"))
    upsert(docs, [Document("1", text="page", metadata={"status": http.HTTPStatus.OK})])
    print(docs.get()["metadatas"])
    """
    assert run_python(code).strip() == "[{'status': 200}]"


def test_a_null_is_as_good_as_nothing(docs: chromadb.Collection) -> None:
    upsert(docs, [Document("a", "a", metadata={"x": None, "y": 1}), Document("b", "b", metadata={"x": None})])
    assert docs.get(ids=["a", "b"])["metadatas"] == [{"y": 1}, None]


@pytest.mark.slow
def test_a_change_of_type_is_a_change(docs: chromadb.Collection) -> None:
    for old, new in ((1, True), (True, 1), (1, 1.0), (1.0, 1), ([1], [True]), ("1", 1), (0, None), (0.5, 0.5 + 2**-40)):
        upsert(docs, [Document("a", "a", metadata={"x": old})])
        assert upsert(docs, [Document("a", "a", metadata={"x": new})], skip_unchanged=True).inserted == 1
        read = (docs.get()["metadatas"] or [])[0] or {}
        assert read.get("x") == new
        assert types_of(read.get("x")) == types_of(new)
        assert is_same_metadata(read, {"x": new})


@pytest.mark.slow
def test_floats_to_the_last_place_but_one(docs: chromadb.Collection) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, 2000, dtype=np.uint64)
    numbers = [number for number in bits.view(np.float64).tolist() if np.isfinite(number)]
    documents = [Document(f"d{i}", "t", metadata={"x": number}) for i, number in enumerate(numbers)]
    upsert(docs, documents)
    assert upsert(docs, documents, skip_unchanged=True).skipped == len(numbers)


@pytest.mark.slow
def test_lists_of_deleted_collections_do_not_come_back(tmp_path: Path) -> None:
    """Chroma itself shows them in the records of others (its own `add`, pinned here, still does)."""
    client = chromadb.PersistentClient(tmp_path)
    function = MLXEmbeddingFunction(mode="mock", dimension=D)
    doomed = create_collection(client, "doomed", function)
    upsert(doomed, [Document(f"d{i}", "t", metadata={"tags": ["secret"], "more": [i]}) for i in range(12)])
    client.delete_collection("doomed")
    docs = create_collection(client, "docs", function)
    docs.add(ids=["first", "plain"], documents=["t", "t"])
    assert docs.get(ids=["plain"])["metadatas"] != [None]
    docs.delete(ids=["first"])
    documents = [
        Document("a", "a"),
        Document("b", "b", metadata={"x": 1}),
        Document("c", vector=[1.0] * D, metadata={"tags": ["mine"]}),
        Document("d", "d", metadata={"tags": 5}),
        Document("plain", "t"),
    ]
    upsert(docs, documents)
    expected = {document.id: document.metadata for document in documents}
    assert dict(zip(docs.get()["ids"], docs.get()["metadatas"] or [], strict=True)) == expected
    losing = [Document("a", vector=[1.0] * D), Document("b", vector=[1.0] * D, metadata={"y": 1})]
    upsert(docs, losing)
    assert docs.get(ids=["a", "b"])["metadatas"] == [None, {"y": 1}]
    kept = {"akidb_mlx:kept": 1, "akidb_mlx:kept_id": "lost"}
    docs.upsert(ids=["akidb_mlx:kept:1"], embeddings=[[1.0] * D], metadatas=[kept])
    docs.update(ids=["akidb_mlx:kept:1"], metadatas=[{"tags": None, "more": None}])
    assert get_collection(client, "docs").get(ids=["lost"])["metadatas"] == [None]


def test_keys() -> None:
    for key in ("akidb_mlx:kept", "akidb_mlx:kept_id", "akidb_mlx:kept_by"):
        with pytest.raises(InvalidInputError, match="own; rename"):
            check_key(key)
    assert plain_metadata(Document("a", "a", metadata={Color.RED: 1})) == {"red": 1}
    assert plain_metadata(Document("a", "a", metadata={"akidb_mlx:x": 1})) == {"akidb_mlx:x": 1}


@pytest.mark.slow
@pytest.mark.parametrize("key", ["akidb_mlx:dimension", "akidb_mlx:kept:1"])
def test_ids_of_our_own_are_refused(docs: chromadb.Collection, key: str) -> None:
    with pytest.raises(InvalidInputError, match="reserved by this package"):
        upsert(docs, [Document(key, "a")])
