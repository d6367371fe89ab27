"""Random documents and a random order of calls through two handles: a collection is a dictionary, or a call is refused.

Whatever is upserted, updated, deleted and re-embedded, what is read back equals a dictionary's; a call that is refused
has changed nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, get_collection, reembed, upsert
from chromadb.api import ClientAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akidb_mlx_plugin import Document, EmbeddingError
from akidb_mlx_plugin.providers.mock import hash_texts

pytest_plugins = ("host_fixtures",)

D = 4
IDS = ["a", "b", "é\x00", "long" * 60]
TEXTS = st.sampled_from(["", "one", "two\x00", "\u2028 \U0001f600"]) | st.text(max_size=8)
HALF_TEXTS = st.text(st.characters(categories=["Cs", "Ll"]), min_size=1, max_size=3)
INTS = st.integers(-(2**65), 2**65) | st.sampled_from([2**63 - 1, 2**63, -(2**63), 0, 1])
FLOATS = st.floats() | st.sampled_from([0.1, -0.0, 1.0, 1e308, 5e-324])
SCALARS = st.one_of(
    st.booleans(),
    INTS,
    FLOATS,
    TEXTS,
    HALF_TEXTS,
    INTS.filter(lambda n: abs(n) < 2**63).map(np.int64),
    FLOATS.map(np.float64),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.integers(-(2**62), 2**62).map(lambda n: np.datetime64(n, "ns")),
)
VALUES = st.one_of(
    SCALARS,
    st.none(),
    st.lists(SCALARS, max_size=3),
    st.lists(INTS.filter(lambda n: abs(n) < 2**63), max_size=3),
    st.lists(TEXTS, min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=1, max_size=3).map(tuple),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3).map(np.array),
    st.dictionaries(TEXTS, SCALARS, max_size=2),
    st.binary(max_size=3),
    st.datetimes(),
)
KEYS = st.sampled_from(["x", "y", "é", "akidb_mlx:mine"]) | st.text(max_size=3)
METADATA = st.none() | st.dictionaries(KEYS, VALUES, max_size=3)
# Whole numbers as they come from JSON, and none of it near the ends of float32, where a length overflows.
VECTORS = st.lists(st.integers(-5, 5) | st.floats(-1e3, 1e3, width=32), min_size=D, max_size=D)
DOCUMENTS = st.builds(
    Document, st.sampled_from(IDS), text=st.none() | TEXTS, vector=st.none() | VECTORS, metadata=METADATA
)
UPSERTS = st.tuples(
    st.just("upsert"),
    st.lists(DOCUMENTS, min_size=1, max_size=4, unique_by=lambda document: document.id),
    st.booleans(),
)
CALLS = st.one_of(
    UPSERTS,
    UPSERTS,
    UPSERTS,
    st.tuples(st.just("upsert"), st.just("the last ones"), st.just(True)),
    st.tuples(st.just("update"), st.sampled_from(IDS), st.sampled_from(["changed", "two"])),
    st.tuples(st.just("delete"), st.sampled_from(IDS)),
    st.tuples(st.just("reembed")),
)
_numbers = itertools.count()


@dataclass
class Model:
    """What a collection should hold.

    Attributes:
        rows: text, metadata and vector by id.
        last: the documents of the last upsert.
    """

    rows: dict[str, tuple[str | None, dict[str, Any], np.ndarray[Any, Any]]] = field(default_factory=dict)
    last: list[Document] = field(default_factory=list)

    def put(self, documents: list[Document]) -> None:
        self.last = documents
        for document in documents:
            metadata = {key: value for key, value in (document.metadata or {}).items() if value is not None}
            given = document.vector
            vector = np.asarray(given, np.float32) if given is not None else hash_texts([document.text or ""], D)[0]
            self.rows[document.id] = (document.text, metadata, vector)


def is_equal(read: Any, given: Any) -> bool:
    """Return whether a value came back: equal, of the same kind, floats to the last places."""
    if isinstance(given, list | tuple | np.ndarray):
        return isinstance(read, list) and len(read) == len(given) and all(map(is_equal, read, given))
    if isinstance(given, bool | np.bool_) or isinstance(read, bool):
        return isinstance(read, bool) and isinstance(given, bool | np.bool_) and read == bool(given)
    if isinstance(given, float | np.floating):
        return isinstance(read, float) and abs(read - float(given)) <= 4 * math.ulp(float(given))
    return not isinstance(read, float) and bool(read == given)


def read(collection: chromadb.Collection) -> dict[str, tuple[Any, Any, Any]]:
    found: Any = collection.get(include=["documents", "metadatas", "embeddings"])
    columns = zip(found["documents"], found["metadatas"], found["embeddings"], strict=True)
    return dict(zip(found["ids"], columns, strict=True))


def check(collection: chromadb.Collection, model: Model, vectors: Callable[[str], Any] | None = None) -> None:
    """Assert that a collection holds what it should; vectors: what a text's should be, where not the model's own."""
    found = read(collection)
    assert found.keys() == model.rows.keys()
    for key, (text, metadata, vector) in model.rows.items():
        expected = vectors(text or "") if vectors else vector
        assert found[key][0] == text
        stored = found[key][1] or {}
        assert stored.keys() == metadata.keys()
        assert all(is_equal(stored[name], value) for name, value in metadata.items()), (stored, metadata)
        np.testing.assert_allclose(found[key][2], expected, rtol=1e-5, atol=1e-5 * (np.abs(expected).max() + 1e-9))


def run(client: ClientAPI, calls: list[tuple[Any, ...]]) -> None:
    function = MLXEmbeddingFunction(mode="mock", dimension=D)
    other = MLXEmbeddingFunction(mode="mock", dimension=D + 1)
    name = f"property-{next(_numbers)}"
    handles = itertools.cycle([create_collection(client, name, function), get_collection(client, name)])
    model = Model()
    for (kind, *arguments), collection in zip(calls, handles, strict=False):
        if kind == "upsert":
            documents = model.last if isinstance(arguments[0], str) else arguments[0]
            try:
                response = upsert(collection, documents, skip_unchanged=arguments[1])
            except EmbeddingError:
                pass
            else:
                assert response.inserted + response.skipped == len(documents)
                model.put(documents)
        elif kind == "update" and arguments[0] in model.rows:
            collection.update(ids=[arguments[0]], documents=[arguments[1]])
            _, metadata, _ = model.rows[arguments[0]]
            model.rows[arguments[0]] = (arguments[1], metadata, hash_texts([arguments[1]], D)[0])
        elif kind == "delete":
            collection.delete(ids=[arguments[0]])
            model.rows.pop(arguments[0], None)
        elif kind == "reembed":
            try:
                made = reembed(collection, other, name=f"{name}-{next(_numbers)}")
            except EmbeddingError:
                assert any(text is None for text, _, _ in model.rows.values())
            else:
                check(made, model, lambda text: hash_texts([text], D + 1)[0])
        check(collection, model)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(CALLS, min_size=1, max_size=8))
def test_in_memory(calls: list[tuple[Any, ...]]) -> None:
    run(chromadb.EphemeralClient(), calls)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(CALLS, min_size=3, max_size=8))
def test_on_disk(calls: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory) -> None:
    run(chromadb.PersistentClient(tmp_path_factory.getbasetemp() / "property"), calls)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(CALLS, min_size=3, max_size=8))
def test_on_a_server(calls: list[tuple[Any, ...]], chroma_port: int) -> None:
    run(chromadb.HttpClient("127.0.0.1", chroma_port), calls)


def test_the_check_sees_what_is_wrong() -> None:
    """A model that is off by a row, a text, a metadata value or a vector is noticed."""
    collection = create_collection(
        chromadb.EphemeralClient(), "property-check", MLXEmbeddingFunction(mode="mock", dimension=D)
    )
    upsert(collection, [Document("a", "text", metadata={"x": 1, "y": [1.0]})])
    wrong = [
        [],
        [Document("b", "text", metadata={"x": 1, "y": [1.0]})],
        [Document("a", "other", vector=hash_texts(["text"], D)[0], metadata={"x": 1, "y": [1.0]})],
        [Document("a", "text", metadata={"x": True, "y": [1.0]})],
        [Document("a", "text", metadata={"x": 1.0, "y": [1.0]})],
        [Document("a", "text", metadata={"x": 1, "y": [1.0], "z": datetime(2024, 1, 1)})],
        [Document("a", "text", metadata={"x": 1})],
        [Document("a", "text", vector=[1, 2, 3, 4], metadata={"x": 1, "y": [1.0]})],
    ]
    for documents in wrong:
        model = Model()
        model.put(documents)
        with pytest.raises(AssertionError):
            check(collection, model)
    model = Model()
    model.put([Document("a", "text", metadata={"x": np.int64(1), "y": (1.0,), "z": None})])
    check(collection, model)
