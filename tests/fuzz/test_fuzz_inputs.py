"""Files that `akidb-mlx embed` is given, whatever is in them, end in an output or an error of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import TEXTS, VALUES, deep_values, fuzz
from hypothesis import strategies as st

from akidb_mlx_plugin.cli.embed_input import TextSource
from akidb_mlx_plugin.cli.embed_output import atomic_write, find_writer
from akidb_mlx_plugin.errors import InvalidInputError

pytestmark = pytest.mark.slow

_ROWS = st.dictionaries(st.sampled_from(["text", "id", "vector", ""]) | TEXTS, VALUES | deep_values(), max_size=4)
_GOOD = st.fixed_dictionaries({"text": st.text(st.characters(codec="utf-8"), max_size=20)}, optional={"n": VALUES})


def _dump(row: Any) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:  # numbers with more digits than Python prints
        return b"{}"


def _damage(line: bytes, place: int, byte: int) -> bytes:
    return line[: place % (len(line) + 1)] + bytes([byte]) + line[place % (len(line) + 1) + 1 :]


_LINES = st.one_of(
    _GOOD.map(_dump),
    (_ROWS | VALUES | deep_values()).map(_dump),
    st.builds(_damage, _GOOD.map(_dump), st.integers(0, 200), st.integers(0, 255)),
    st.sampled_from([b"", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"text": "a", "n": 1' + b"0" * 5000 + b"}", b"\x00"]),
    st.binary(max_size=20),
)
_FILES = st.tuples(
    st.sampled_from(["jsonl", "jsonl", "jsonl", "lines", "parquet"]),
    st.one_of(st.lists(_GOOD.map(_dump), max_size=4), st.lists(_LINES, max_size=4)),
    st.sampled_from(["o.jsonl", "o.npy", "o.parquet"]),
)


@pytest.fixture(scope="module")
def parquet() -> bytes:
    """A whole file of three rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a", "b", "c"], "n": [1, 2, 3], "deep": [[{"x": 1}], [], None]}), sink)
    return bytes(sink.getvalue())


def _embed(source: Path, file_format: Any, output: Path) -> None:
    """Do what the command does, with vectors of zeros."""
    with TextSource(str(source), file_format, "text") as texts, atomic_write(output) as file:
        writer = find_writer(output)(file, texts.schema, "vector")
        try:
            for rows in texts.read_chunks(2):
                writer.write(rows, np.zeros((len(rows), 2), np.float32))
            writer.finish(2)
        finally:
            writer.close()


def test_rows(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    def embed(given: tuple[str, list[bytes], str]) -> None:
        file_format, lines, output = given
        (tmp_path / "in").write_bytes(b"\n".join(lines))
        _embed(tmp_path / "in", file_format, tmp_path / output)

    fuzz(request, _FILES, embed, usual=300)


def test_damaged_parquet(request: pytest.FixtureRequest, tmp_path: Path, parquet: bytes) -> None:
    damages = st.lists(st.tuples(st.integers(0, len(parquet)), st.integers(0, 255)), max_size=3)
    ends = st.just(len(parquet)) | st.integers(0, len(parquet))

    def embed(given: tuple[list[tuple[int, int]], int]) -> None:
        content = parquet
        for place, byte in given[0]:
            content = _damage(content, place, byte)
        (tmp_path / "in.parquet").write_bytes(content[: given[1]])
        _embed(tmp_path / "in.parquet", "parquet", tmp_path / "o.jsonl")

    fuzz(request, st.tuples(damages, ends), embed, usual=150)


@pytest.mark.parametrize(
    ("part", "damage"), [(b"PAR1\x15", b"PAR1\x00"), (b"text", b"te\x80t")], ids=["a page", "a column's name"]
)
def test_parquet_damaged_behind_its_footer(part: bytes, damage: bytes, tmp_path: Path, parquet: bytes) -> None:
    assert part in parquet
    (tmp_path / "in.parquet").write_bytes(parquet.replace(part, damage))
    with pytest.raises(InvalidInputError, match="Parquet"):
        _embed(tmp_path / "in.parquet", "parquet", tmp_path / "o.jsonl")
