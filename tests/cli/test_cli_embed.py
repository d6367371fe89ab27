"""`akidb-mlx embed`: every input and output format, in order, in chunks, and never partially written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.cli.embed import embed
from akidb_mlx_plugin.errors import EmbeddingError

MINILM = "minilm-l6-v2"
TEXTS = ["Water boils at 100 °C.", "", "Cats [sleep] a lot.", "  Paris is in France.\t"]

app = typer.Typer()
app.command()(embed)


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, stdin: str | bytes | None = None) -> dict[str, object]:
    result = CliRunner().invoke(app, [*arguments, "--json"], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert isinstance(row, dict)
    return row


def refuse(*arguments: str, stdin: str | bytes | None = None) -> str:
    result = CliRunner().invoke(app, [*arguments], input=stdin)
    assert isinstance(result.exception, EmbeddingError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def expected(minilm: EmbeddingService) -> np.ndarray:
    return minilm.embed_batch(TEXTS).embeddings


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akidb_mlx_plugin.cli.embed._CHUNK", 3)
    monkeypatch.setattr("akidb_mlx_plugin.cli.embed_input._BATCH", 2)


def write_input(name: str) -> str:
    path = Path(name)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"n": pa.array(range(4), pa.int8()), "text": TEXTS}), path)
    elif path.suffix == ".jsonl":
        rows = [json.dumps({"n": n, "text": text}, ensure_ascii=False) for n, text in enumerate(TEXTS)]
        path.write_text("\n\n".join(rows), encoding="utf-8")
    else:
        path.write_bytes("\r\n".join(TEXTS).encode())
    return name


def read_vectors(name: str) -> np.ndarray:
    if name.endswith(".npy"):
        return np.asarray(np.load(name))
    if name.endswith(".jsonl"):
        return np.array([json.loads(line)["vector"] for line in Path(name).open(encoding="utf-8")], dtype=np.float32)
    return np.stack(pq.read_table(name).column("vector").to_numpy())


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("output", ["out.npy", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("source", ["in.txt", "in.jsonl", "in.parquet"])
def test_every_format_into_every_other(source: str, output: str, expected: np.ndarray) -> None:
    row = run(write_input(source), "--output", output, "--model", MINILM)
    vectors = read_vectors(output)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 384)
    assert (vectors * expected).sum(axis=1) == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert (row["texts"], row["dimension"], row["truncated"]) == (4, 384, 0)
    assert sorted(path.name for path in Path().iterdir()) == sorted([source, output])


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks", "minilm_dir")
def test_rows_are_kept_with_their_types() -> None:
    run(write_input("in.parquet"), "--output", "out.parquet", "--model", MINILM, "--vector-column", "v")
    table = pq.read_table("out.parquet")
    assert table.schema.field("n").type == pa.int8()
    assert table.schema.field("v").type == pa.list_(pa.float32(), 384)
    assert table.column("text").to_pylist() == TEXTS
    run(write_input("in.jsonl"), "--output", "out.jsonl", "--model", MINILM)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["n"], row["text"]) for row in rows] == list(enumerate(TEXTS))


@pytest.mark.slow
def test_queries_get_the_query_prompt(minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__QUERY_PROMPT", "the question: ")
    Path("in.txt").write_text("one")
    run("in.txt", "--output", "q.npy", "--kind", "query", "--model", MINILM)
    run("in.txt", "--output", "d.npy", "--model", MINILM)
    assert not np.allclose(np.load("q.npy"), np.load("d.npy"), atol=1e-3)


@pytest.mark.parametrize("output", ["out.npy", "out.jsonl", "out.parquet"])
def test_no_texts_give_an_empty_file(output: str, minilm_dir: Path) -> None:
    assert run("-", "--output", output, "--model", MINILM, stdin="")["texts"] == 0
    if output.endswith(".npy"):
        assert np.load(output).shape == (0, 384)
    elif output.endswith(".parquet"):
        assert pq.read_table(output).num_rows == 0
    else:
        assert Path(output).read_bytes() == b""


@pytest.mark.slow
def test_a_list_of_strings_as_json_lines(minilm_dir: Path, expected: np.ndarray) -> None:
    lines = "\n".join(map(json.dumps, TEXTS))
    run("-", "--input-format", "jsonl", "--output", "o.npy", "--model", MINILM, stdin=lines)
    assert np.allclose(np.load("o.npy"), expected, atol=1e-5)


def test_a_byte_order_mark_is_no_text(minilm: EmbeddingService) -> None:
    run("-", "--output", "o.npy", "--model", MINILM, stdin=b"\xef\xbb\xbfcat")
    assert np.allclose(np.load("o.npy"), minilm.embed_batch(["cat"]).embeddings, atol=1e-5)


@pytest.mark.usefixtures("minilm_dir")
@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ('{"text": "a"}\n{"body": "b"}', "row 2 of standard input has no text in field 'text'; its fields are body"),
        ('{"text": null}', "row 1 of standard input: field 'text' is None, not a text; leave such rows out"),
        ('{"text": "a"}\n{"text": "b\\ud800"}', "row 2 of standard input holds a lone surrogate (character 1)"),
        ('{"text": "a", "n": NaN}', "line 1 of standard input is not JSON: it has no NaN"),
        ('{"text": "a", "n": 1e999}', "a number that JSON cannot represent"),
        ("[1]", "not an object"),
        ('{"text": "a"', "line 1 of standard input is not JSON"),
        (b'{"text": "\xff"}', "line 1 of standard input is not UTF-8"),
        ('{"text": "a", "vector": 1}', "--vector-column"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(stdin: str | bytes, says: str) -> None:
    Path("o.jsonl").write_text("what was there before")
    message = refuse("-", "--input-format", "jsonl", "--output", "o.jsonl", "--model", MINILM, stdin=stdin)
    assert says in message
    assert "\n" not in message
    assert Path("o.jsonl").read_text() == "what was there before"
    assert [path.name for path in Path().iterdir()] == ["o.jsonl"]


@pytest.mark.slow
@pytest.mark.usefixtures("minilm_dir", "small_chunks")
@pytest.mark.parametrize(
    ("late", "field"),
    [
        ('{"text": "d", "new": 1}', "new"),
        ('{"text": "d", "n": "word"}', "n"),
        ('{"text": "d", "nothing": 1}', "nothing"),
    ],
)
def test_rows_of_different_kinds_do_not_go_into_one_table(late: str, field: str) -> None:
    rows = '{"text": "a", "n": 1, "nothing": null}\n' * 3 + late
    message = refuse("-", "--input-format", "jsonl", "--output", "o.parquet", "--model", MINILM, stdin=rows)
    assert f"the field {field!r}" in message
    assert "write .jsonl instead" in message
    assert list(Path().iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("minilm_dir")
def test_fields_that_not_every_row_has_become_columns() -> None:
    rows = '{"text": "a"}\n{"text": "b", "extra": 1}\n{"text": "c", "nested": {"x": [1]}}\n'
    run("-", "--input-format", "jsonl", "--output", "o.parquet", "--model", MINILM, stdin=rows)
    table = pq.read_table("o.parquet")
    assert table.column_names == ["text", "extra", "nested", "vector"]
    assert table.column("extra").to_pylist() == [None, 1, None]
    assert table.column("nested").to_pylist() == [None, None, {"x": [1]}]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["in.csv", "--output", "o.npy"], "specify --input-format"),
        ([".", "--output", "folder.npy"], "folder.npy is a folder"),
        (["missing.txt", "--output", "o.npy"], "cannot read missing.txt: No such file"),
        (["missing.parquet", "--output", "o.npy"], "cannot read missing.parquet"),
        (["in.txt", "--output", "o.csv"], "must end in one of .npy"),
        (["in.txt", "--output", "no/such/folder/o.npy", "--model", MINILM], "cannot write no/such/folder/o.npy"),
        (["-", "--input-format", "parquet", "--output", "o.npy"], "cannot be read from a pipe"),
        (["in.txt", "--input-format", "parquet", "--output", "o.npy"], "in.txt is not Parquet"),
        (["in.txt", "--output", "o.npy", "--model", "minilm"], "did you mean 'minilm-l6-v2'"),
        (["in.txt", "--output", "o.npy", "--model", MINILM, "--dimension", "100"], "384"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], says: str, minilm_dir: Path) -> None:
    Path("in.txt").write_text("one")
    Path("folder.npy").mkdir()
    assert says in refuse(*arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["folder.npy", "in.txt"]


def test_the_file_may_be_its_own_output(minilm_dir: Path) -> None:
    Path("a.jsonl").write_text('{"text": "one"}\n')
    run("a.jsonl", "--output", "a.jsonl", "--model", MINILM)
    assert len(json.loads(Path("a.jsonl").read_text())["vector"]) == 384


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = EmbeddingService.embed_batch

    def note(self: EmbeddingService, texts: list[str], **how: object) -> object:
        sizes.append(len(texts))
        return original(self, texts, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingService, "embed_batch", note)
    monkeypatch.setattr("akidb_mlx_plugin.cli.embed._CHUNK", 64)
    run("-", "--output", "o.npy", "--model", MINILM, stdin="a word\n" * 150)
    assert sizes == [64, 64, 22]
    assert np.load("o.npy", mmap_mode="r").shape == (150, 384)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_file(number: int, status: int, tmp_path: Path, minilm_dir: Path) -> None:
    Path("o.npy").write_text("what was there before")
    process = subprocess.Popen(
        [sys.executable, "-m", "akidb_mlx_plugin", "embed", "-", "--output", "o.npy", "--model", MINILM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdin is not None
    process.stdin.write(b"a line of text\n" * 1024)
    process.stdin.flush()
    while not list(tmp_path.glob(".akidb-mlx-*.part")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert b"Traceback" not in errors
    assert Path("o.npy").read_text() == "what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["o.npy"]


@pytest.mark.slow
def test_an_error_is_one_line_of_standard_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "akidb_mlx_plugin", "embed", "no.txt", "--output", "o.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "akidb-mlx: cannot read no.txt: No such file or directory\n"
