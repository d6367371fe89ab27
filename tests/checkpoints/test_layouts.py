"""Folder layouts of converters, caches and older versions of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_helpers import TEXTS, add_dense, change, copy_golden, embed, front_matter, pipeline, write
from tokenizers import Tokenizer

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny BERT with mean pooling."""
    return copy_golden("bert", tmp_path / "m")


def write_float64(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file with dtypes that MLX does not have."""
    header: dict[str, Any] = {}
    content = b""
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "float64": "F64", "int64": "I64"}[tensor.dtype.name]
        span = [len(content), len(content) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": span}
        content += tensor.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content)


def drop(folder: Path, name: str) -> None:
    for file in (folder / name).iterdir():
        file.unlink()
    (folder / name).rmdir()


class TestPoolingFolderThatIsNotThere:
    def test_the_family_of_the_repository_says_it(self, folder: Path) -> None:
        drop(folder, "1_Pooling")
        checkpoint = read_checkpoint(folder, repo="BAAI/bge-small-en-v1.5")
        assert (checkpoint.pooling, checkpoint.origins["pooling"]) == (("cls",), "family BAAI/bge-small-en-v1.5")

    @pytest.mark.parametrize("named", ["BAAI/bge-m3", ["BAAI/bge-m3"], ["org/unknown", "baai/BGE-M3"]])
    def test_the_model_that_the_readme_names_says_it(self, named: Any, folder: Path) -> None:
        drop(folder, "1_Pooling")
        front_matter(folder, library_name="mlx", base_model=named, tags=["mlx"])
        assert read_checkpoint(folder).pooling == ("cls",)

    def test_never_the_name_of_the_folder(self, folder: Path) -> None:
        drop(folder, "1_Pooling")
        named = folder.rename(folder.with_name("bge-m3"))
        checkpoint = read_checkpoint(named)
        assert (checkpoint.family, checkpoint.pooling) == (None, ("mean",))
        assert checkpoint.origins["pooling"] == "convention of bert"

    @pytest.mark.parametrize(
        "facts", [{"base_model_relation": "finetune"}, {"tags": ["sentence-transformers", "generated_from_trainer"]}]
    )
    def test_nor_the_base_of_a_model_that_was_trained_further(self, facts: dict[str, Any], folder: Path) -> None:
        front_matter(folder, base_model="intfloat/e5-base-v2", **facts)
        checkpoint = read_checkpoint(folder)
        assert (checkpoint.family, checkpoint.prompt_for("query")) == (None, "")

    @pytest.mark.parametrize(
        "text", ["", "---\nbase_model: [", "no front matter", "---\n- a\n---\n", "---\nx: &a [*a]\n---\n"]
    )
    def test_a_readme_that_says_nothing(self, text: str, folder: Path) -> None:
        (folder / "README.md").write_text(text)
        assert read_checkpoint(folder).family is None


class TestDenseLayers:
    def test_inside_the_weights_where_their_folders_are_not_there(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense", "Dense", "Normalize")
        matrices = [add_dense(folder, 2, (32, 64)), add_dense(folder, 3, (64, 16))]
        expected = embed(folder)
        assert expected.shape == (len(TEXTS), 16)
        drop(folder, "2_Dense")
        drop(folder, "3_Dense")
        tensors = mx.load(str(folder / "model.safetensors"))
        assert isinstance(tensors, dict)
        tensors |= {f"dense.{i}.weight": matrix for i, matrix in enumerate(matrices)}
        mx.eval(tensors)
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        assert np.abs(embed(folder) - expected).max() < 1e-6
        # Also without a pipeline.
        (folder / "modules.json").unlink()
        assert np.abs(embed(folder) - expected).max() < 1e-6

    def test_nowhere_are_refused_by_name(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense", "Normalize")
        with pytest.raises(ModelNotFoundError, match=r"lacks the folder 2_Dense.*dense\.N"):
            read_checkpoint(folder)

    def test_of_the_family_that_a_bare_folder_lacks(self, folder: Path) -> None:
        (folder / "modules.json").unlink()
        with pytest.raises(ModelNotFoundError, match="1 dense layer"):
            read_checkpoint(folder, repo="sentence-transformers/LaBSE")

    def test_that_do_not_fit_each_other(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense")
        add_dense(folder, 2, (64, 16))
        with pytest.raises(ModelNotFoundError, match="takes vectors of 64 components"):
            read_checkpoint(folder)


class TestNormalize:
    def test_before_a_dense_layer_and_twice(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling")
        plain = embed(folder)
        matrix = np.array(add_dense(folder, 3, (32, 16)))
        pipeline(folder, "Transformer", "Pooling", "Normalize", "Dense", "Normalize", "Normalize")
        checkpoint = read_checkpoint(folder)
        assert checkpoint.normalize
        expected = plain / np.linalg.norm(plain, axis=1, keepdims=True) @ matrix.T
        assert np.abs(embed(folder, normalize=False) - expected).max() < 1e-6

    def test_before_there_is_a_vector_it_does_nothing(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Normalize", "Pooling")
        (folder / "2_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").rename(folder / "2_Pooling" / "config.json")
        assert not read_checkpoint(folder).normalize

    def test_of_tokens_is_refused(self, folder: Path) -> None:
        write(folder / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
        with pytest.raises(ModelNotFoundError, match="token_embeddings"):
            read_checkpoint(folder)


class TestPlaces:
    def test_the_transformer_in_a_folder_of_its_own(self, folder: Path) -> None:
        expected = embed(folder)
        (folder / "0_Transformer").mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).rename(folder / "0_Transformer" / name)
        entries = json.loads((folder / "modules.json").read_text())
        entries[0]["path"] = "0_Transformer"
        write(folder / "modules.json", entries)
        with EmbeddingService(str(folder), device="cpu") as service:
            assert np.abs(service.embed_batch(list(TEXTS)).embeddings - expected).max() < 1e-6

    def test_a_folder_of_a_hugging_face_cache(self, tmp_path: Path) -> None:
        cache = tmp_path / "models--org--tiny"
        snapshot = copy_golden("bert", cache / "snapshots" / ("a" * 40))
        (cache / "blobs").mkdir()
        assert np.array_equal(embed(cache), embed(snapshot))

    def test_shards_in_a_folder_below(self, folder: Path) -> None:
        expected, digest = embed(folder), read_checkpoint(folder).weights_digest
        (folder / "parts").mkdir()
        (folder / "model.safetensors").rename(folder / "parts" / "all.safetensors")
        write(folder / "model.safetensors.index.json", {"weight_map": {"x": "parts/all.safetensors"}})
        assert np.array_equal(embed(folder), expected)
        assert read_checkpoint(folder).weights_digest == digest
        write(folder / "model.safetensors.index.json", {"weight_map": {"x": "../all.safetensors"}})
        with pytest.raises(ModelNotFoundError, match="outside the folder"):
            embed(folder)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json", "modules.json"])
    def test_a_pointer_of_git_lfs(self, name: str, folder: Path) -> None:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
        with pytest.raises(ModelNotFoundError, match="git lfs pull"):
            embed(folder)


class TestFamilies:
    def test_known_by_the_prompts_that_a_copy_brings(self, tmp_path: Path) -> None:
        folder = copy_golden("qwen3", tmp_path / "m")
        query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
        change(folder / "config_sentence_transformers.json", prompts={"query": query, "document": ""})
        checkpoint = read_checkpoint(folder)
        assert checkpoint.origins["family"] == "Qwen/Qwen3-Embedding-0.6B"
        assert checkpoint.end_token == "<|endoftext|>"
        assert checkpoint.allowed_dimensions == range(32, 33)
        change(folder / "config_sentence_transformers.json", prompts={"query": "other: ", "document": ""})
        assert read_checkpoint(folder).family is None

    def test_fill_the_prompts_that_a_checkpoint_lacks(self, folder: Path) -> None:
        checkpoint = read_checkpoint(folder, repo="intfloat/multilingual-e5-base")
        assert (checkpoint.prompt_for("query"), checkpoint.prompt_for("document")) == ("query: ", "passage: ")
        change(folder / "config_sentence_transformers.json", prompts={"query": "q: "})
        checkpoint = read_checkpoint(folder, repo="intfloat/multilingual-e5-base")
        assert (checkpoint.prompt_for("query"), checkpoint.prompt_for("document")) == ("q: ", "")

    def test_a_bare_one_that_is_compared_by_dot_product_is_not_scaled(self, folder: Path) -> None:
        for name in ("modules.json", "config_sentence_transformers.json"):
            (folder / name).unlink()
        checkpoint = read_checkpoint(folder, repo="facebook/contriever")
        assert (checkpoint.normalize, checkpoint.similarity) == (False, "dot")


class TestStaticEmbedding:
    @pytest.fixture
    def static(self, folder: Path) -> Path:
        table = mx.random.normal((448, 24), key=mx.random.key(7))
        mx.save_safetensors(str(folder / "model.safetensors"), {"embedding.weight": table})
        (folder / "config.json").unlink()
        pipeline(folder, "StaticEmbedding", "Normalize")
        entries = json.loads((folder / "modules.json").read_text())
        entries[0]["path"] = ""
        write(folder / "modules.json", entries)
        return folder

    def test_is_described(self, static: Path) -> None:
        checkpoint = read_checkpoint(static)
        assert (checkpoint.model_type, checkpoint.native_dimension) == ("static_embedding", 24)
        assert (checkpoint.pooling, checkpoint.normalize) == (("mean",), True)

    def test_without_its_table_is_refused(self, static: Path) -> None:
        mx.save_safetensors(str(static / "model.safetensors"), {"other": mx.zeros(1)})
        with pytest.raises(ModelNotFoundError, match=r"no table embedding\.weight or embeddings; they hold other"):
            read_checkpoint(static)

    def test_a_mapping_past_the_table_is_refused(self, static: Path) -> None:
        table = mx.random.normal((10, 24), key=mx.random.key(7))
        tensors = {"embeddings": table, "mapping": mx.full((448,), 10, dtype=mx.int64)}
        mx.save_safetensors(str(static / "model.safetensors"), tensors)
        with pytest.raises(ModelNotFoundError, match="outside the table's 10 rows"):
            embed(static)

    def test_is_the_mean_of_its_tokens_without_special_ones(self, static: Path) -> None:
        tokenizer = Tokenizer.from_file(str(static / "tokenizer.json"))
        tokenizer.no_truncation()
        tensors = mx.load(str(static / "model.safetensors"))
        assert isinstance(tensors, dict)
        table = np.array(tensors["embedding.weight"])
        long = "the stone bridge over the river " * 200
        texts = (*TEXTS, long)
        rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        expected = np.stack([table[row].mean(axis=0) for row in rows])
        assert np.abs(embed(static, texts, normalize=False) - expected).max() < 1e-6

    def test_of_model2vec_with_rows_shared_and_weighted(self, static: Path) -> None:
        rng = np.random.default_rng(3)
        table, weights = rng.standard_normal((50, 24)).astype(np.float32), rng.random(448).astype(np.float64)
        mapping = rng.integers(0, 50, 448)
        write_float64(static / "model.safetensors", {"embeddings": table, "weights": weights, "mapping": mapping})
        plain = table[mapping] * weights[:, None]
        tokenizer = Tokenizer.from_file(str(static / "tokenizer.json"))
        rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        expected = np.stack([plain[row].mean(axis=0) for row in rows])
        assert np.abs(embed(static, normalize=False) - expected).max() < 1e-6
        # Without a pipeline, model2vec's own settings apply.
        (static / "modules.json").unlink()
        write(static / "config.json", {"model_type": "model2vec", "normalize": False, "seq_length": 1000})
        assert np.abs(embed(static) - expected).max() < 1e-6
        assert read_checkpoint(static).max_tokens == 1000
