"""The embedder as a stage: what it makes of rows, and of a model that fails."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
from akidb_mlx_ray import TextEmbedder, embed_dataset
from akidb_mlx_ray.dataset import embedder_arguments
from akidb_mlx_ray.results import Failure, Tally
from host_helpers import MINILM, run_python
from ray_corpus import MOCK, assert_same_vectors, corpus

from akidb_mlx_plugin import (
    DownloadError,
    EmbeddingConfig,
    EmbeddingError,
    EmbeddingService,
    InvalidInputError,
    ModelNotFoundError,
    ServiceUnavailableError,
)
from akidb_mlx_plugin.providers import EmbeddingProvider
from akidb_mlx_plugin.providers.mock import MockProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

pytest_plugins = ("host_fixtures", "ray_fixtures")

# Ray starts processes for each run.
pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_dataset_gets_fixed_size_lists(minilm: EmbeddingService) -> None:
    rows = embed_dataset(corpus(20), MINILM, kind="query", concurrency=1).to_arrow_refs()
    table = pa.concat_tables(ray.get(rows))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
    assert_same_vectors(table["id"].to_pylist(), table["vector"].to_pylist(), minilm)


def test_a_workers_environment_has_no_say_in_what_a_collection_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = embedder_arguments(EmbeddingConfig.from_arguments(MINILM, dimension=128, device="cpu"))
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__DOCUMENT_PROMPT", "passage: ")
    config = TextEmbedder(**arguments)._service.config
    assert (config.mode, config.mlx.model, config.mlx.dimension) == ("mlx", MINILM, 128)
    assert (config.mlx.document_prompt, config.mlx.device) == (None, "cpu")


class FailingProvider(MockProvider):
    """Fails on texts that hold one of these words, with its error."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(8)
        self.errors = errors
        self.asked: list[list[str]] = []

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        self.asked.append(list(request.inputs))
        for text in request.inputs:
            for word in text.split():
                if word in self.errors:
                    raise self.errors[word]
        return super().embed_batch(request)


def embedder_with(provider: EmbeddingProvider) -> tuple[TextEmbedder, Tally]:
    tally = Tally()
    embedder = TextEmbedder(**MOCK, id_column="id", tally=tally)
    embedder._service = EmbeddingService(provider=provider)
    return embedder, tally


def test_a_text_that_the_model_fails_on_is_noted_and_the_others_are_embedded() -> None:
    errors = {"bad": InvalidInputError("text 0 is bad"), "huge": EmbeddingError("a vector that is not finite")}
    embedder, tally = embedder_with(FailingProvider(errors))
    made = embedder(pa.table({"id": ["a", "b", "c", "d"], "text": ["x", "a bad one", "a huge one", "y"]}))
    assert made["id"].to_pylist() == ["a", "d"]
    wanted = EmbeddingService(**MOCK).embed_batch(["x", "y"]).embeddings
    np.testing.assert_array_equal(made["vector"].to_pylist(), wanted)
    (report,), failures = tally.read()
    assert report.texts == 2
    assert failures == [
        Failure("b", "a bad one", "text 0 is bad"),
        Failure("c", "a huge one", "a vector that is not finite"),
    ]


@pytest.mark.parametrize(
    "error", [ModelNotFoundError("damaged"), DownloadError("no network"), ServiceUnavailableError("no memory")]
)
def test_an_error_of_the_model_is_no_texts(error: EmbeddingError) -> None:
    provider = FailingProvider({"x": error})
    embedder, tally = embedder_with(provider)
    with pytest.raises(type(error), match=str(error)):
        embedder(pa.table({"id": ["a", "b"], "text": ["x", "y"]}))
    assert provider.asked[1:] == [["x", "y"]]
    assert tally.read() == ((), [])


def test_a_setting_that_keeps_the_model_from_loading_is_no_texts_error() -> None:
    provider = FailingProvider(dict.fromkeys(["warm", "x"], InvalidInputError("no such dtype")))
    embedder, tally = embedder_with(provider)
    with pytest.raises(InvalidInputError, match="no such dtype"):
        embedder(pa.table({"id": ["a"], "text": ["x"]}))
    assert (len(provider.asked), tally.read()) == (1, ((), []))


class SlowProvider(MockProvider):
    """Takes an hour to load, and then a second for a text, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__(8)
        self.now_s = 0.0
        self.loaded = False

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        self.now_s += len(request.inputs) + (0 if self.loaded else 3600)
        self.loaded = True
        return super().embed_batch(request)


def test_loading_is_not_counted_as_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = SlowProvider()
    monkeypatch.setattr("akidb_mlx_ray.embedder.time", SimpleNamespace(perf_counter=lambda: provider.now_s))
    embedder, tally = embedder_with(provider)
    embedder(pa.table({"id": ["a", "b"], "text": ["x", "y"]}))
    embedder(pa.table({"id": ["c"], "text": ["z"]}))
    (report,), _ = tally.read()
    assert (report.texts, report.tokens, report.seconds, report.texts_per_second) == (3, 3, 3.0, 1.0)


def test_a_worker_imports_neither_database() -> None:
    found = run_python(
        "import sys, akidb_mlx_ray; akidb_mlx_ray.TextEmbedder, akidb_mlx_ray.embed_dataset\n"
        "print([name for name in ('chromadb', 'lance', 'lancedb', 'mlx') if name in sys.modules])"
    )
    assert found == "[]\n"


def test_embedder_alone_names_the_row_without_text() -> None:
    embedder = TextEmbedder(**MOCK, id_column="id")
    with pytest.raises(InvalidInputError, match="row b has NoneType as its text"):
        embedder(pa.table({"id": ["a", "b"], "text": ["x", None]}))
