"""Bad input: a typed error that says what is wrong and what to do, before any work; or a documented result."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import lancedb
import mlx.core as mx
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import MINILM

from akidb_mlx_plugin import EmbeddingService, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.runtime.workers import WorkerPool

pytest_plugins = ("host_fixtures",)

UNUSABLE_TEXTS = [
    ([], "no texts"),
    ("a bare text", r"list of strings, got str; put a single text in \[ \]"),
    (b"bytes", "list of strings, got bytes"),
    (None, "list of strings, got NoneType"),
    (5, "list of strings, got int"),
    (["a", None], "text 1 is NoneType"),
    (["a", b"b"], "text 1 is bytes.*decode"),
    (["a", 1.5], "text 1 is float"),
    ([["a"]], "text 0 is list"),
    (["a", "b\ud800c"], r"text 1 holds a lone surrogate \(character 1\)"),
    (["\udfff"], r"text 0 holds a lone surrogate \(character 0\)"),
]
HUGE = {
    "words": "word " * 200_000,
    "one word": "x" * 1_000_000,
    "other scripts": "東京" * 50_000,
    "blanks": " " * 1_000_000,
    "zero bytes": "\0" * 1_000_000,
}


@pytest.fixture(scope="module")
def tiny() -> Any:
    """An embedder on a tiny BERT."""
    with Embedder.load(Path(__file__).parents[1] / "golden" / "bert" / "model") as embedder:
        yield embedder


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if anything is asked of a model's threads."""

    def refuse(self: WorkerPool, work: Any, **_: Any) -> Any:
        raise AssertionError("a model was put to work")

    monkeypatch.setattr(WorkerPool, "submit", refuse)


def table_of(folder: Path, **settings: Any) -> lancedb.table.Table:
    """Return an empty LanceDB table with our function on its texts."""
    function = MLXEmbeddings.create(**settings)
    config = lancedb.embeddings.EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=function)
    vectors = pa.list_(pa.float32(), function.dimension)
    return lancedb.connect(folder).create_table(
        "bad", schema=pa.schema({"text": pa.string(), "vector": vectors}), embedding_functions=[config]
    )


@pytest.mark.usefixtures("no_work")
class TestTexts:
    @pytest.mark.parametrize(("texts", "message"), UNUSABLE_TEXTS)
    def test_embedder(self, tiny: Embedder, texts: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            tiny.embed(texts)

    @pytest.mark.parametrize(("texts", "message"), UNUSABLE_TEXTS)
    def test_functions(self, minilm: EmbeddingService, texts: Any, message: str) -> None:
        function = MLXEmbeddingFunction(MINILM)
        # One query is a string, and no documents are no vectors: LangChain's calls.
        queries = [] if isinstance(texts, str) else [function.embed_query]
        documents = [] if texts == [] else [function.embed_documents]
        for embed in (function, minilm.embed_batch, *queries, *documents):
            with pytest.raises(InvalidInputError, match=message):
                embed(texts)  # type: ignore[operator]

    @pytest.mark.parametrize(
        "text", [pytest.param(None, id="none"), pytest.param(b"b", id="bytes"), pytest.param(5, id="number")]
    )
    def test_what_chroma_refuses_itself(self, name: str, minilm: EmbeddingService, text: Any) -> None:
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=MLXEmbeddingFunction(MINILM))
        with pytest.raises(ValueError, match="Expected document to be a str"):
            collection.add(ids=["a"], documents=[text])
        with pytest.raises(ValueError, match="Non-empty lists are required"):
            collection.add(ids=[], documents=[])
        assert collection.count() == 0

    def test_what_chroma_lets_through(self, name: str, minilm: EmbeddingService) -> None:
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=MLXEmbeddingFunction(MINILM))
        for ask in (
            lambda: collection.add(ids=["a"], documents=["a\ud800"]),
            lambda: collection.upsert(ids=["a"], documents=["a\ud800"]),
            lambda: collection.query(query_texts=["a\ud800"]),
        ):
            with pytest.raises(InvalidInputError, match="lone surrogate"):
                ask()
        assert collection.count() == 0

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            ([{"text": 5}], RuntimeError),
            ([{"text": b"b"}], RuntimeError),
            # Arrow's strings cannot hold one.
            ([{"text": "a\ud800"}], UnicodeEncodeError),
        ],
    )
    def test_what_lancedb_lets_through(
        self, tmp_path: Path, minilm: EmbeddingService, rows: Any, error: type[Exception]
    ) -> None:
        table = table_of(tmp_path, name=MINILM)
        with pytest.raises(error, match=r"text 0 is (int|bytes), not a string|surrogates"):
            table.add(rows)
        assert table.count_rows() == 0

    def test_lancedbs_queries(self, tmp_path: Path, minilm: EmbeddingService) -> None:
        table = table_of(tmp_path, name=MINILM)
        for query, message in ((b"b", "got bytes"), (5, "got int"), ("a\ud800", "lone surrogate")):
            with pytest.raises(InvalidInputError, match=message):
                table.search(query)

    def test_a_bad_text_among_many_stops_all(self, tiny: Embedder) -> None:
        with pytest.raises(InvalidInputError, match="text 4999 is NoneType"):
            tiny.embed(["fine"] * 4999 + [None])  # type: ignore[list-item]


class TestDocumentedResults:
    @pytest.mark.slow
    def test_an_empty_text_is_its_special_tokens(self, minilm: EmbeddingService) -> None:
        result = minilm.embed_batch([""])
        assert result.usage.total_tokens == 2
        assert np.linalg.norm(result.embeddings[0]) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(result.embeddings, minilm.embed_batch([" \n"]).embeddings, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "truncated"),
        # A word too long is one unknown token; blanks and zero bytes are none.
        [("words", 1), ("other scripts", 1), ("one word", 0), ("blanks", 0), ("zero bytes", 0)],
    )
    def test_a_huge_text_is_cut_and_counted(self, minilm: EmbeddingService, kind: str, truncated: int) -> None:
        result = minilm.embed_batch([HUGE[kind]])
        assert result.usage.truncated == truncated
        assert result.usage.total_tokens == (256 if truncated else 3 if kind == "one word" else 2)
        assert np.linalg.norm(result.embeddings[0]) == pytest.approx(1, abs=1e-5)

    @pytest.mark.slow
    def test_it_is_as_good_as_its_beginning(self, minilm: EmbeddingService) -> None:
        long, cut = minilm.embed_batch([HUGE["words"], "word " * 254]), minilm.embed_batch(["word " * 254])
        assert (long.usage.truncated, cut.usage.truncated) == (1, 0)
        assert float(long.embeddings[0] @ cut.embeddings[0]) >= 0.99999

    @pytest.mark.slow
    def test_it_goes_into_both_databases(self, name: str, tmp_path: Path, minilm: EmbeddingService) -> None:
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=MLXEmbeddingFunction(MINILM))
        collection.add(ids=["long"], documents=[HUGE["words"]])
        assert collection.query(query_texts=["word " * 254])["distances"] == [[pytest.approx(0, abs=1e-5)]]
        table = table_of(tmp_path, name=MINILM)
        table.add([{"text": HUGE["words"]}])
        assert table.search("word " * 254).limit(1).to_list()[0]["text"] == HUGE["words"]


class TestNames:
    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            ("minilm-l6-v3", ModelNotFoundError, "did you mean 'minilm-l6-v2'"),
            ("qwen3", ModelNotFoundError, "did you mean 'qwen3-0.6b-4bit'"),
            ("EmbeddingGemma-300M", ModelNotFoundError, "did you mean 'gemma-300m-4bit'"),
            ("zzz", ModelNotFoundError, "known names are qwen3-0.6b-4bit, gemma-300m-4bit, minilm-l6-v2"),
            ("./no-such-folder", ModelNotFoundError, r"no folder at '.*no-such-folder'"),
            (" ", InvalidInputError, "model must be"),
        ],
    )
    def test_everywhere(self, tmp_path: Path, name: str, model: str, error: type[Exception], message: str) -> None:
        stored = MLXEmbeddingFunction.build_from_config({"model": model})
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=stored)
        for ask in (
            lambda: Embedder.load(model),
            lambda: EmbeddingService(model).embed_batch(["a"]),
            lambda: MLXEmbeddingFunction(model)(["a"]),
            lambda: collection.add(ids=["a"], documents=["a"]),
            lambda: collection.query(query_texts=["a"]),
            lambda: MLXEmbeddings.create(name=model).ndims(),
            lambda: table_of(tmp_path, name=model, dimension=8).search("a"),
        ):
            with pytest.raises(error, match=message):
                ask()
        assert collection.count() == 0


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def retensor(folder: Path, change: Callable[[dict[str, mx.array]], Any]) -> None:
    """Change the tensors of model.safetensors."""
    file = folder / "model.safetensors"
    tensors = {key: mx.array(np.array(value)) for key, value in dict(mx.load(str(file))).items()}  # type: ignore[union-attr]
    change(tensors)
    mx.save_safetensors(str(file), tensors)


WEIGHT = "encoder.layer.1.output.dense.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no checkpoint": (lambda d: [file.unlink() for file in d.rglob("*") if file.is_file()], "no config.json"),
    "config no JSON": (lambda d: (d / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
    "config no object": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "config of nothing": (lambda d: (d / "config.json").write_text("{}"), "no model_type"),
    "architecture": (lambda d: rewrite(d, lambda c: c.update(model_type="retnet")), "'retnet'.*supported are albert"),
    "activation": (lambda d: rewrite(d, lambda c: c.update(hidden_act="swish9")), "hidden_act"),
    "positions": (lambda d: rewrite(d, lambda c: c.update(position_embedding_type="relative_key")), "relative_key"),
    "missing tensor": (lambda d: retensor(d, lambda t: t.pop(WEIGHT)), WEIGHT),
    "extra tensor": (lambda d: retensor(d, lambda t: t.update({"adapter.down": t[WEIGHT]})), r"adapter\.down"),
    "shape": (lambda d: retensor(d, lambda t: t.update({WEIGHT: t[WEIGHT].T})), rf"{WEIGHT} of shape \(64, 32\)"),
    "cut off": (lambda d: os.truncate(d / "model.safetensors", 100_000), r"model\.safetensors"),
    "empty file": (lambda d: os.truncate(d / "model.safetensors", 0), r"model\.safetensors"),
    "noise": (
        lambda d: (d / "model.safetensors").write_bytes(random.Random(0).randbytes(5000)),
        r"model\.safetensors",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"no \*\.safetensors"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "tokenizer no JSON": (lambda d: (d / "tokenizer.json").write_text("{}"), r"tokenizer\.json cannot be read"),
    "modules no list": (lambda d: (d / "modules.json").write_text("5"), r"modules\.json cannot be read"),
    "pooling": (
        lambda d: (d / "1_Pooling" / "config.json").write_text('{"pooling_mode": "attention"}'),
        "unsupported pooling.*attention",
    ),
}


class TestCheckpoints:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", DAMAGE)
    def test_everywhere(self, tiny_dir: Path, tmp_path: Path, name: str, kind: str) -> None:
        damage, message = DAMAGE[kind]
        damage(tiny_dir)
        collection = chromadb.EphemeralClient().create_collection(
            name, embedding_function=MLXEmbeddingFunction(tiny_dir)
        )
        table = table_of(tmp_path, name=tiny_dir, dimension=32)
        for ask in (
            lambda: Embedder.load(tiny_dir),
            lambda: EmbeddingService(tiny_dir).embed_batch(["a"]),
            lambda: collection.add(ids=["a"], documents=["a"]),
            lambda: collection.query(query_texts=["a"]),
            lambda: table.search("a"),
        ):
            with pytest.raises(ModelNotFoundError, match=message):
                ask()
        with pytest.raises(RuntimeError, match=message):
            table.add([{"text": "a"}])
        assert (collection.count(), table.count_rows()) == (0, 0)

    def test_mended_it_loads_without_a_new_process(self, tiny_dir: Path) -> None:
        whole = (tiny_dir / "config.json").read_bytes()
        function = MLXEmbeddingFunction(tiny_dir)
        rewrite(tiny_dir, lambda config: config.update(model_type="retnet"))
        with pytest.raises(ModelNotFoundError):
            function(["a"])
        (tiny_dir / "config.json").write_bytes(whole)
        assert function(["a"])[0].shape == (32,)


class TestCommandLine:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["models", "info", "minilm-l6-v3"], "did you mean 'minilm-l6-v2'"),
            (["models", "download", "."], "no config.json"),
            (["demo", "--model", "./foreign", "--path", "db"], "supported are albert"),
            (["config", "show", "-c", "absent.yaml"], "no configuration file at absent.yaml"),
        ],
    )
    def test_one_line_and_no_stack_trace(
        self, tmp_path: Path, tiny_dir: Path, arguments: list[str], message: str
    ) -> None:
        DAMAGE["architecture"][0](shutil.copytree(tiny_dir, tmp_path / "foreign"))
        done = subprocess.run(
            [sys.executable, "-m", "akidb_mlx_plugin", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("akidb-mlx: ")
        assert message in line
