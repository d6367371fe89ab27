"""What a stored collection says is data from a stranger: it ends in a function, or in an error of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chromadb
import pyarrow as pa
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, get_collection, upsert
from akidb_mlx_chroma.metadata import plain_metadata
from akidb_mlx_lancedb import MLXEmbeddings
from akidb_mlx_lancedb.schema import read_table_schemas
from chromadb.errors import ChromaError
from fuzzing import SCALARS, TEXTS, VALUES, deep_values, fuzz
from hypothesis import strategies as st

from akidb_mlx_plugin import Document
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.stores.settings import SETTINGS

pytestmark = pytest.mark.slow

_MODES = st.sampled_from(["mlx", "mock", "mock", "user_provided"]) | SCALARS
_SETTINGS = st.one_of(
    st.fixed_dictionaries({"mode": _MODES}, optional={**dict.fromkeys(SETTINGS[2:], SCALARS), "model": TEXTS | VALUES}),
    st.dictionaries(st.sampled_from(SETTINGS) | TEXTS, VALUES | deep_values(), max_size=4),
    VALUES,
)


@pytest.fixture(autouse=True)
def _without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is to be downloaded on a stranger's word, and nothing could be."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", str(tmp_path / "cache"))


def _describe(service: EmbeddingService) -> None:
    info = service.model_info()
    assert info.dimension is None or 0 <= info.dimension <= 2**20


def test_settings_in_chroma(request: pytest.FixtureRequest) -> None:
    def build(config: Any) -> None:
        MLXEmbeddingFunction.validate_config(config)
        function = MLXEmbeddingFunction.build_from_config(config)
        _describe(function.service)
        function.validate_config_update(config, function.get_config())

    fuzz(request, _SETTINGS, build, usual=150)


def test_settings_in_lancedb(request: pytest.FixtureRequest) -> None:
    def build(fields: Any) -> None:
        if isinstance(fields, dict) and all(isinstance(key, str) for key in fields):
            _describe(MLXEmbeddings.from_stored({"name" if k == "model" else k: v for k, v in fields.items()}).service)
        else:
            raise InvalidInputError("a table's layout has refused it")

    fuzz(request, _SETTINGS, build, usual=150)


_COLUMNS = st.sampled_from(["id", "text", "vector", "nosuch"]) | SCALARS
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("akidb-mlx") | SCALARS,
        "model": _SETTINGS,
        "source_column": _COLUMNS,
        "vector_column": _COLUMNS,
    },
)
_WHOLE_ENTRY = st.fixed_dictionaries(
    {
        "name": st.just("akidb-mlx"),
        "model": _SETTINGS,
        "source_column": st.just("text"),
        "vector_column": st.just("vector"),
    }
)


def _dump(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except ValueError:
        return b"[]"


_STAMPS = st.dictionaries(
    st.sampled_from(["model", "dimension", "fingerprint"]).map("akidb_mlx:{}".format) | TEXTS, TEXTS, max_size=3
)
_TABLES = st.tuples(
    st.lists(_WHOLE_ENTRY | _ENTRY | VALUES, max_size=2).map(_dump) | VALUES.map(_dump) | st.binary(max_size=20),
    _STAMPS,
)


def test_schemas_of_tables(request: pytest.FixtureRequest) -> None:
    def read(given: tuple[bytes, dict[str, str]]) -> None:
        functions, stamps = given
        metadata = {key.encode("utf-8", "replace"): value.encode("utf-8", "replace") for key, value in stamps.items()}
        fields = [("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), 4))]
        schema = pa.schema(fields, metadata={**metadata, b"embedding_functions": functions})
        for table in read_table_schemas("docs", schema):
            if table.stored is not None:
                _describe(MLXEmbeddings.from_stored(table.stored).service)

    fuzz(request, _TABLES, read, usual=150)


_METADATA = st.dictionaries(
    st.sampled_from(["model", "dimension", "fingerprint", "kept"]).map("akidb_mlx:{}".format) | TEXTS.filter(bool),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    min_size=1,
    max_size=3,
)


def _writable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def test_metadata_of_collections(request: pytest.FixtureRequest) -> None:
    client = chromadb.EphemeralClient()
    function = MLXEmbeddingFunction(mode="mock", dimension=4)

    # One for all: Chroma keeps the memory of those that are deleted.
    collection = client.create_collection("fuzzed", embedding_function=function)

    def open_and_write(metadata: dict[str, Any]) -> None:
        try:
            collection.modify(metadata={_writable(key): _writable(value) for key, value in metadata.items()})
        except (ValueError, ChromaError):  # Chroma's own rules for keys
            raise InvalidInputError("nobody can have stored it") from None
        upsert(get_collection(client, "fuzzed"), [Document("a", "text")])

    fuzz(request, _METADATA, open_and_write, usual=60)


def test_metadata_of_documents(request: pytest.FixtureRequest) -> None:
    odd = st.sampled_from([object(), b"x", 1j, {1, 2}, range(3), float]) | VALUES | deep_values()
    metadata = st.dictionaries(TEXTS, odd, max_size=3)
    fuzz(request, metadata, lambda given: plain_metadata(Document("a", "text", metadata=given)), usual=150)
