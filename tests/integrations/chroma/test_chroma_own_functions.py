"""What Chroma's own tests hold its embedding functions to (chromadb/test/ef), held against ours.

Cases that have no counterpart: API keys, ONNX providers, sparse vectors, and archives of weights (tests/test_hub.py).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from chromadb.api.models.CollectionCommon import validation_context
from chromadb.api.types import EmbeddingFunction
from chromadb.utils import embedding_functions
from host_helpers import MINILM

from akidb_mlx_plugin import DownloadError, EmbeddingService, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.runtime.devices import choose_device

pytest_plugins = ("host_fixtures", "hub_fixtures")


class TestCustomFunctions:
    """test_custom_ef.py, test_ef.py"""

    def test_calling_gives_a_list_of_arrays(self, function: MLXEmbeddingFunction) -> None:
        result = function(["test"])
        assert isinstance(result, list)
        assert len(result) == 1
        assert isinstance(result[0], np.ndarray)

    def test_importing_registers_it(self) -> None:
        assert embedding_functions.known_embedding_functions["akidb_mlx"] is MLXEmbeddingFunction

    def test_it_is_one_by_the_protocol(self, function: MLXEmbeddingFunction) -> None:
        assert isinstance(function, EmbeddingFunction)

    def test_it_is_none_of_chromas_own(self) -> None:
        assert "MLXEmbeddingFunction" not in embedding_functions.get_builtins()

    def test_a_context_is_added_to_errors_and_their_type_kept(self) -> None:
        class Broken(MLXEmbeddingFunction):
            @validation_context("my_call")
            def __call__(self, input: Any) -> Any:
                raise ModelNotFoundError("no model")

        with pytest.raises(ModelNotFoundError) as caught:
            Broken()(["test"])
        assert str(caught.value) == "no model in my_call."
        assert caught.value.args == ("no model in my_call.",)

    def test_from_a_configuration(self) -> None:
        function = embedding_functions.config_to_embedding_function({"name": "akidb_mlx", "config": {"model": MINILM}})
        assert isinstance(function, MLXEmbeddingFunction)


class TestMiniLM:
    """test_onnx_mini_lm_l6_v2.py: the same model by another engine"""

    @pytest.mark.slow
    def test_shape_and_length(self, function: MLXEmbeddingFunction) -> None:
        vectors = function(["This is a test document", "Another test document"])
        assert [len(vector) for vector in vectors] == [384, 384]
        np.testing.assert_allclose(np.linalg.norm(np.stack(vectors), axis=1), 1, atol=1e-5)

    def test_more_than_a_batch(self, function: MLXEmbeddingFunction) -> None:
        texts = [f"Document {i}" for i in range(40)]
        vectors = function(texts)
        assert len(vectors) == 40
        assert len({vector.tobytes() for vector in vectors}) == 40

    def test_rebuilt_from_its_configuration(self, function: MLXEmbeddingFunction) -> None:
        rebuilt = MLXEmbeddingFunction.build_from_config(json.loads(json.dumps(function.get_config())))
        np.testing.assert_array_equal(rebuilt(["Test document"])[0], function(["Test document"])[0])

    def test_longest_text(self, function: MLXEmbeddingFunction) -> None:
        assert function.model_info().max_tokens == 256

    @pytest.mark.parametrize(
        "text",
        [
            "Short text",
            "A longer text that contains multiple words and should be embedded properly",
            "",
            "Special characters: !@#$%^&*()",
            "Numbers: 1234567890",
            "Unicode: 你好, こんにちは, 안녕하세요",
        ],
    )
    def test_all_sorts_of_texts(self, function: MLXEmbeddingFunction, text: str) -> None:
        (vector,) = function([text])
        assert vector.shape == (384,)
        assert np.isfinite(vector).all()

    def test_the_same_text_twice(self, function: MLXEmbeddingFunction) -> None:
        np.testing.assert_array_equal(function(["This is a test document"]), function(["This is a test document"]))

    @pytest.mark.slow
    def test_like_texts_are_closer(self, function: MLXEmbeddingFunction) -> None:
        cat, other_cat, physics = function(
            ["The cat sat on the mat", "A cat was sitting on a mat", "Quantum physics is fascinating"]
        )
        assert cat @ other_cat > 0.8 > 0.2 > cat @ physics


class TestModels:
    """test_openai_ef.py, test_voyageai_ef.py, test_ollama_ef.py, test_default_ef.py"""

    def test_fewer_dimensions(self, tiny_dir: Path) -> None:
        config = json.loads((tiny_dir / "config.json").read_text())
        (tiny_dir / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8, 16]}))
        (short,), (whole,) = (MLXEmbeddingFunction(tiny_dir, dimension=d)(["city"]) for d in (16, 32))
        assert short.shape == (16,)
        np.testing.assert_allclose(short, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)

    def test_fewer_dimensions_of_a_model_that_has_none(self, minilm: EmbeddingService) -> None:
        with pytest.raises(InvalidInputError, match="minilm-l6-v2 gives 384 dimensions, not 64"):
            MLXEmbeddingFunction(MINILM, dimension=64)(["test"])

    def test_the_default_model(self) -> None:
        assert MLXEmbeddingFunction().get_config()["model"] == "qwen3-0.6b-4bit"
        assert MLXEmbeddingFunction().get_config()["dimension"] == 512

    def test_an_unknown_model(self) -> None:
        with pytest.raises(ModelNotFoundError, match="minilm-l6-v2"):
            MLXEmbeddingFunction("minilm")(["test"])

    def test_an_address_where_nobody_is(
        self, hub: Any, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port}")
        with pytest.raises(DownloadError, match=r"HF_ENDPOINT"):
            MLXEmbeddingFunction("org/model")(["test"])

    def test_a_device_that_is_not_there(self) -> None:
        if choose_device("auto") == "gpu":
            pytest.skip("this machine has a GPU")
        with pytest.raises(InvalidInputError, match="gpu"):
            MLXEmbeddingFunction(MINILM, device="gpu")(["test"])


class TestSettings:
    """test_morph_ef.py, test_chroma_bm25_embedding_function.py"""

    def test_name_and_spaces(self, function: MLXEmbeddingFunction) -> None:
        assert MLXEmbeddingFunction.name() == "akidb_mlx"
        assert function.default_space() == "cosine"
        assert function.supported_spaces() == ["cosine", "l2", "ip"]
        assert not function.is_legacy()

    def test_custom_parameters_are_in_the_configuration(self) -> None:
        given = {"model": "org/m", "dimension": 3, "normalize": False, "query_prompt": "q", "document_prompt": "d"}
        config = MLXEmbeddingFunction(**given).get_config()  # type: ignore[arg-type]
        assert {key: config[key] for key in given} == given

    def test_a_valid_configuration(self, function: MLXEmbeddingFunction) -> None:
        function.validate_config(function.get_config())
        function.validate_config_update(function.get_config(), function.get_config())

    def test_unknown_keys_are_refused(self, function: MLXEmbeddingFunction) -> None:
        with pytest.raises(InvalidInputError, match="unknown embedding settings api_key"):
            function.validate_config({**function.get_config(), "api_key": "x"})

    def test_queries_are_documents_for_a_model_without_prompts(self, function: MLXEmbeddingFunction) -> None:
        np.testing.assert_array_equal(function(["a query"]), function.embed_query(["a query"]))

    @pytest.mark.slow
    def test_many_threads(self, function: MLXEmbeddingFunction) -> None:
        texts = [f"Document number {i}" for i in range(32)]
        with ThreadPoolExecutor(8) as pool:
            threaded = list(pool.map(lambda text: function([text])[0], texts))
        np.testing.assert_allclose(np.stack(threaded), np.stack(function(texts)), atol=1e-5)


class TestImages:
    """test_multimodal_ef.py"""

    def test_are_refused_by_a_model_of_texts(self, name: str, function: MLXEmbeddingFunction) -> None:
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=function)
        with pytest.raises(InvalidInputError, match="text 0 is ndarray"):
            collection.add(ids=["image"], images=[np.zeros((2, 2, 3), dtype=np.int64)])
        assert collection.count() == 0
