"""Random documents in random order through two handles: a LanceDB table is a dictionary, or a call was refused."""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
import uuid
from decimal import Decimal
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, create_table, reembed, upsert
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from akidb_mlx_plugin import Document, InvalidInputError
from akidb_mlx_plugin.providers.mock import hash_texts

D = 8
IDS = ["a", "b", "it's", 'q"', "ü", "\0"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
BERLIN = dt.timezone(dt.timedelta(hours=2))
NULL = st.none()

# A column's type, the values it keeps and some that it must refuse or keep.
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "i8": (pa.int8(), st.integers(-128, 127), st.integers() | st.floats() | st.booleans()),
    "u64": (pa.uint64(), st.integers(0, 2**64 - 1), st.integers()),
    "f64": (pa.float64(), st.floats(), st.integers() | st.just("1")),
    "f32": (pa.float32(), st.floats(width=32), st.floats()),
    "flag": (pa.bool_(), st.booleans(), st.integers(0, 1)),
    "word": (pa.string(), TEXTS, st.binary(max_size=3) | st.text(max_size=3)),
    "raw": (pa.binary(), st.binary(max_size=5), TEXTS),
    "price": (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2), st.decimals(allow_nan=False)),
    "day": (pa.date32(), st.dates(), st.datetimes()),
    "ms": (
        pa.timestamp("ms"),
        st.datetimes().map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)),
        st.datetimes() | st.datetimes(timezones=st.just(BERLIN)) | st.just(np.datetime64(1, "ns")),
    ),
    "zoned": (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(dt.timezone.utc)), st.datetimes()),
    "ns": (pa.timestamp("ns"), st.integers(-(2**60), 2**60).map(lambda n: np.datetime64(n, "us")), st.datetimes()),
    "span": (pa.duration("us"), st.timedeltas(), st.integers()),
    "clock": (pa.time64("us"), st.times(), st.times(timezones=st.just(BERLIN))),
    "key": (pa.uuid(), st.uuids(), st.uuids().map(str)),
    "tags": (pa.list_(pa.string()), st.lists(TEXTS | NULL, max_size=3), st.text(max_size=3)),
    "place": (
        pa.struct([pa.field("lat", pa.float64(), nullable=False), pa.field("on", pa.list_(pa.date32()))]),
        st.fixed_dictionaries({"lat": st.floats(), "on": st.lists(st.dates() | NULL, max_size=2) | NULL}),
        st.dictionaries(st.sampled_from(["lat", "more"]), st.floats() | NULL, max_size=2),
    ),
}
JSON = st.recursive(
    NULL | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NO_JSON = (
    st.just(math.nan) | st.just(2**64) | st.dictionaries(st.integers(), NULL, min_size=1, max_size=1) | st.binary()
)


@st.composite
def metadata(draw: Any) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), max_size=4, unique=True))
    values = {name: draw(NULL | COLUMNS[name][1]) for name in names}
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(COLUMNS)))
        values[name] = draw(COLUMNS[name][2])
    values |= draw(st.dictionaries(st.sampled_from(["x", "y z", "ключ", ""]), JSON, max_size=2))
    if draw(st.integers(0, 9)) == 0:
        values["x"] = draw(NO_JSON)
    return dict(values)


@st.composite
def documents(draw: Any) -> list[Document]:
    ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True))
    made = []
    for id_ in ids:
        text = draw(TEXTS | NULL)
        vector = draw(NULL | st.lists(st.floats(-1e3, 1e3, width=32), min_size=D, max_size=D))
        if text is None and vector is None:
            vector = [0.5] * D
        made.append(Document(id_, text, vector, draw(NULL | metadata())))
    return made


def canonical(value: Any, kind: pa.DataType | None = None) -> Any:
    """Return a value such that equal ones, and no others, compare equal: a NaN is itself, and 1 is not True."""
    if isinstance(value, np.datetime64):
        return ("ns", int(value.astype("datetime64[us]").astype(np.int64)) * 1000)
    if isinstance(value, dt.datetime):
        moment = value.astimezone(dt.timezone.utc).replace(tzinfo=None) if value.tzinfo else value
        exact = (moment - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1) * 1000
        return ("ns", exact + getattr(value, "nanosecond", 0))
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        return struct.pack(">d", float(np.float32(value)) if kind == pa.float32() else value)
    return (type(value).__name__, value)


def expected_metadata(document: Document) -> dict[str, Any]:
    """Return what the table is to say of a document's metadata."""
    given = {key: value for key, value in (document.metadata or {}).items() if value is not None}
    kept = {}
    for name, value in given.items():
        kind = COLUMNS[name][0] if name in COLUMNS else None
        if name == "place":
            value = {"lat": None, "on": None, **value}
        if kind is not None and pa.types.is_integer(kind) and isinstance(value, float):
            value = int(value)
        if kind in (pa.float64(), pa.float32()) and isinstance(value, int):
            value = float(value)
        if isinstance(value, Decimal):
            value = value.normalize() + 0
        kept[name] = canonical(value, kind)
    return kept


def read(table: Any) -> dict[str, Any]:
    """Return a table's rows by id, read past the package."""
    rows = table.to_arrow().to_pylist()
    found = {}
    for row in rows:
        assert row["id"] not in found, "an id that is there twice"
        columns = {name: row[name] for name in COLUMNS if row[name] is not None}
        if "price" in columns:
            columns["price"] = columns["price"].normalize() + 0
        others = {name: canonical(value) for name, value in json.loads(row["metadata"] or "{}").items()}
        kept = {name: canonical(value, COLUMNS[name][0]) for name, value in columns.items()}
        found[row["id"]] = (row["text"], row["vector"], {**others, **kept})
    return found


class TwoHandles(RuleBasedStateMachine):
    """A table, two handles of it, and the dictionary that it has to be."""

    @initialize()
    def make(self) -> None:
        self.db: Any = lancedb.connect("memory://")
        self.function = MLXEmbeddings.create(mode="mock", dimension=D)
        fields = [pa.field(name, kind) for name, (kind, *_) in COLUMNS.items()]
        schema = pa.schema([*fields, pa.field("metadata", pa.json_())])
        create_table(self.db, "docs", self.function, schema=schema)
        self.handles = [self.db.open_table("docs") for _ in range(2)]
        self.rows: dict[str, Any] = {}

    @rule(which=st.integers(0, 1), batch=documents(), skip=st.booleans(), size=st.none() | st.integers(1, 3))
    def upsert(self, which: int, batch: list[Document], skip: bool, size: int | None) -> None:
        try:
            upsert(self.handles[which], batch, skip_unchanged=skip, batch_size=size)
        except InvalidInputError:
            return
        for document in batch:
            old = self.rows.get(document.id)
            vector = document.vector
            if vector is None:
                # The vector of an unchanged text is kept, whoever brought it.
                is_kept = skip and old is not None and old[0] == document.text
                vector = old[1] if is_kept else hash_texts([document.text or ""], D)[0].tolist()
            self.rows[document.id] = (document.text, list(vector), expected_metadata(document))

    @rule(which=st.integers(0, 1))
    def upsert_what_is_there(self, which: int) -> None:
        """Write what is stored once more, as documents of the same values."""
        again = [Document(id_, text, vector) for id_, (text, vector, kept) in self.rows.items() if not kept]
        if again:
            assert upsert(self.handles[which], again, skip_unchanged=True).skipped == len(again)

    @rule(which=st.integers(0, 1), id_=st.sampled_from(IDS))
    def delete(self, which: int, id_: str) -> None:
        handle = self.handles[which]
        handle.checkout_latest()
        handle.delete("id = '" + id_.replace("'", "''") + "'")
        self.rows.pop(id_, None)

    @rule(which=st.integers(0, 1))
    def reembed(self, which: int) -> None:
        name = f"next-{uuid.uuid4().hex}"
        try:
            made = reembed(self.handles[which], MLXEmbeddings.create(mode="mock", dimension=4), name=name)
        except InvalidInputError:
            assert any(text is None for text, _, _ in self.rows.values())
            return
        found = read(made)
        assert {id_: (text, kept) for id_, (text, _, kept) in found.items()} == {
            id_: (text, kept) for id_, (text, _, kept) in self.rows.items()
        }
        for text, vector, _ in found.values():
            assert vector == hash_texts([text], 4)[0].tolist()
        self.db.drop_table(name)

    @invariant()
    def is_a_dictionary(self) -> None:
        if hasattr(self, "rows"):
            assert read(self.db.open_table("docs")) == self.rows


TwoHandles.TestCase.settings = settings(
    max_examples=40, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwoHandles = pytest.mark.slow(TwoHandles.TestCase)
