"""Read and compute a small copy of every checkpoint in the README's table, in its published layout."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import checkpoint_helpers
import mlx.core as mx
import numpy as np
import pytest
from checkpoint_helpers import change, copy_golden, write
from golden_models import GOLDEN, Golden, embed, farthest, read_golden, token_rows
from published import Published
from published_decoders import CONVERSIONS, DECODERS
from published_encoders import ENCODERS
from tokenizers import Tokenizer

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import check_settings, read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import UNQUANTIZED
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer import load_text_tokenizer
from akidb_mlx_plugin.models.architectures import find_architecture
from akidb_mlx_plugin.types import Vector

PUBLISHED = (*ENCODERS, *DECODERS, *CONVERSIONS)
IDS = [published.repos[0].rpartition("/")[2] for published in PUBLISHED]
QUESTION = "the stone bridge over the river in winter"


@pytest.fixture(params=PUBLISHED, ids=IDS)
def published(request: pytest.FixtureRequest) -> Published:
    layout: Published = request.param
    return layout


def positions(checkpoint: Checkpoint) -> int:
    """Return the number of tokens that a tiny checkpoint has positions for."""
    architecture = find_architecture(checkpoint.model_type)
    named = checkpoint.config.get(architecture.positions or "") or 1 << 30
    return int(named) - (int(checkpoint.config.get("pad_token_id") or 0) + 1 if architecture.offset_positions else 0)


def check_description(checkpoint: Checkpoint, published: Published) -> None:
    assert checkpoint.pooling == (published.pooling,)
    assert checkpoint.normalize is published.normalize
    known = checkpoint.family is not None
    assert checkpoint.end_token == (published.end if known else None)
    if published.end:
        (row,) = load_text_tokenizer(checkpoint).encode([QUESTION]).ids
        assert row[-1] == Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).token_to_id(published.end)
    assert checkpoint.max_tokens == min(published.longest or published.tokens or 0, positions(checkpoint))
    # The lengths for the real width.
    dense = tuple(replace(layer, out_features=published.width) for layer in checkpoint.dense)
    width = {"hidden_size": published.width}
    real = replace(checkpoint, config={**checkpoint.config, **width}, dense=dense).allowed_dimensions
    expected = (published.dimensions if known else None) or ()
    whole = published.width
    assert real == (range(expected.start, whole + 1) if isinstance(expected, range) else (*expected, whole))


@pytest.mark.slow
def test_by_its_repository(published: Published, tmp_path: Path) -> None:
    folder = published.build(tmp_path / "m")
    for repo in published.repos:
        checkpoint = read_checkpoint(folder, repo=repo)
        check_description(checkpoint, published)
        assert checkpoint.prompt_for("query") == published.query
        assert checkpoint.prompt_for("document") == published.document
        assert checkpoint.similarity == published.similarity
        assert not checkpoint.pooling_is_convention


@pytest.mark.slow
def test_before_its_weights_are_there(published: Published, tmp_path: Path) -> None:
    folder = published.build(tmp_path / "m")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    check_settings(folder)


def compare(published: Published, checkpoint: Checkpoint, golden: Golden, texts: Sequence[str]) -> Vector:
    """Return the golden checkpoint's vectors with the published one's pooling and dense layers."""
    same = golden.checkpoint.pooling == (published.pooling,)
    if same and len(golden.checkpoint.dense) == len(checkpoint.dense):
        return golden.vectors["document"][[golden.texts.index(text) for text in texts]]
    plain = replace(golden.checkpoint, pooling=(published.pooling,), normalize=False)
    if len(checkpoint.dense) == len(golden.checkpoint.dense):
        return embed(plain, load_model(plain, device="cpu"), texts)
    plain = replace(plain, dense=())
    vectors = embed(plain, load_model(plain, device="cpu"), texts)
    for layer in checkpoint.dense:
        head = mx.load(str(layer.folder / "model.safetensors")) if layer.folder else {}
        assert isinstance(head, dict)
        vectors = vectors @ np.array(head["linear.weight"]).T + np.array(head["linear.bias"])
        vectors = np.tanh(vectors) if layer.activation == "tanh" else vectors
    return vectors


@pytest.mark.slow
def test_as_a_local_folder(published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = published.build(tmp_path / "m")
    golden = read_golden(published.golden)
    prompt = golden.checkpoint.prompt_for("document")
    rows, _ = token_rows(golden.checkpoint, golden.texts, "document")
    limit = min(golden.checkpoint.max_tokens, published.tokens or golden.checkpoint.max_tokens)
    texts = [text for text, row in zip(golden.texts, rows, strict=True) if len(row) < limit]
    with caplog.at_level(logging.WARNING), Embedder.load(folder, device="cpu") as embedder:
        checkpoint = read_checkpoint(folder)
        assert (checkpoint.family is not None) is bool(published.base_model or published.is_told)
        query = published.query if published.knows_prompts else ""
        assert checkpoint.prompt_for("query") == query
        assert checkpoint.prompt_for("document") == (published.document if published.knows_prompts else "")
        vectors = embedder.embed(texts, prompt=prompt).embeddings
        asked = embedder.embed([QUESTION], kind="query").embeddings
        # A cached prompt's keys and values may round differently.
        assert farthest(asked, embedder.embed([query + QUESTION], prompt="").embeddings) < 1e-5
        assert len(texts) > 5
        assert np.isfinite(vectors).all()
        lengths = np.linalg.norm(vectors, axis=1)
        assert bool(np.abs(lengths - 1).max() < 1e-5) is checkpoint.normalize
    if checkpoint.pooling == (published.pooling,):
        expected = compare(published, checkpoint, golden, texts)
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        assert farthest(vectors / lengths[:, None], unit) < 1e-5
        if published.base_model or published.modules:
            check_description(checkpoint, published)
    else:
        # Neither the folder nor its README gives the pooling: the convention is used, with a warning.
        assert checkpoint.pooling_is_convention
        assert "pass pooling=" in caplog.text


class TestStaticEmbedding:
    """static-retrieval-mrl-en-v1 and potion, which have no transformer."""

    SOURCE = GOLDEN / "static_embedding"

    def expected(self) -> tuple[list[str], Vector]:
        texts = json.loads((self.SOURCE / "texts.json").read_text("utf-8"))
        with np.load(self.SOURCE / "vectors.npz") as arrays:
            return texts, arrays["document"]

    def test_as_sentence_transformers_publishes_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        for name in ("model.safetensors", "tokenizer.json"):
            (folder / "0_StaticEmbedding").mkdir(parents=True, exist_ok=True)
            shutil.copy(self.SOURCE / "pipeline" / name, folder / "0_StaticEmbedding" / name)
        kind = "sentence_transformers.models.StaticEmbedding"
        write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": kind}])
        texts, expected = self.expected()
        with Embedder.load(folder, device="cpu") as embedder:
            assert farthest(embedder.embed(texts).embeddings, expected) < 1e-5
        checkpoint = read_checkpoint(folder, repo="sentence-transformers/static-retrieval-mrl-en-v1")
        wide = replace(checkpoint, config={**checkpoint.config, "hidden_size": 1024})
        assert wide.allowed_dimensions == (32, 64, 128, 256, 512, 1024)
        assert (checkpoint.normalize, checkpoint.similarity, checkpoint.prompt_for("query")) == (False, "cosine", "")

    @pytest.mark.parametrize("has_modules", [True, False])
    def test_as_model2vec_publishes_it(self, has_modules: bool, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        folder.mkdir()
        shutil.copy(self.SOURCE / "pipeline" / "tokenizer.json", folder / "tokenizer.json")
        tensors = mx.load(str(self.SOURCE / "pipeline" / "model.safetensors"))
        assert isinstance(tensors, dict)
        mx.save_safetensors(str(folder / "model.safetensors"), {"embeddings": tensors["embedding.weight"]})
        settings = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 24, "normalize": True}
        write(folder / "config.json", {**settings, "seq_length": 1_000_000, "apply_zipf": True, "apply_pca": 24})
        if has_modules:
            kinds = {".": "StaticEmbedding", "1_Normalize": "Normalize"}
            entries = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
            write(folder / "modules.json", entries)
        texts, expected = self.expected()
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        with Embedder.load(folder, device="cpu") as embedder:
            assert farthest(embedder.embed(texts).embeddings, unit) < 1e-5
        assert read_checkpoint(folder, repo="minishlab/potion-base-8M").normalize


def modules(*types: str) -> list[dict[str, str]]:
    return [{"path": "" if "Transformer" in name else f"{i}", "type": name} for i, name in enumerate(types)]


_ST = "sentence_transformers.models"
REFUSED = {
    "jinaai/jina-embeddings-v3": (
        {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]},
        "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA",
        modules("custom_st.Transformer", f"{_ST}.Pooling", f"{_ST}.Normalize"),
        "custom code (modeling_lora.XLMRobertaLoRA), which this package does not run; it applies an adapter (LoRA) "
        "for each task; merge the one for your task into jinaai/jina-embeddings-v3-hf (peft's merge_and_unload, then "
        "save_pretrained)",
    ),
    "jinaai/jina-embeddings-v5-text-small": (
        {"model_type": "jina_embeddings_v5", "architectures": ["JinaEmbeddingsV5Model"]},
        "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model",
        modules("custom_st.Transformer", f"{_ST}.Pooling", f"{_ST}.Normalize"),
        "custom code (modeling_jina_embeddings_v5.JinaEmbeddingsV5Model), which this package does not run; it "
        "applies an adapter (LoRA) for each task; use a repository with the adapter merged, such as "
        "jinaai/jina-embeddings-v5-text-small-retrieval or jinaai/jina-embeddings-v5-text-nano-retrieval",
    ),
    "perplexity-ai/pplx-embed-v1-0.6b": (
        {"model_type": "bidirectional_pplx_qwen3", "architectures": ["PPLXQwen3Model"]},
        "modeling.PPLXQwen3Model",
        modules(f"{_ST}.Transformer", f"{_ST}.Pooling", "st_quantize.FlexibleQuantizer"),
        "custom code (modeling.PPLXQwen3Model), which this package does not run; its modules also run custom code "
        "(st_quantize), which rounds vectors to 8 bits",
    ),
}


@pytest.mark.parametrize("repo", REFUSED)
def test_what_is_refused_says_why_before_any_weights_are_there(repo: str, tmp_path: Path) -> None:
    config, code, pipeline, sentence = REFUSED[repo]
    write(tmp_path / "config.json", {**config, "hidden_size": 1024, "auto_map": {"AutoModel": code}})
    write(tmp_path / "modules.json", pipeline)
    for read in (check_settings, read_checkpoint):
        with pytest.raises(ModelNotFoundError) as refusal:
            read(tmp_path)
        assert str(refusal.value) == (f"{tmp_path / 'config.json'} has auto_map: the model needs {sentence}")


def test_pickles_alone_are_refused_with_a_way_out(tmp_path: Path) -> None:
    layout = next(published for published in PUBLISHED if published.repos == ("BAAI/bge-m3",))
    folder = layout.build(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match=r"is not loaded; .* 'akidb-mlx convert FOLDER TARGET"):
        Embedder.load(folder, device="cpu")


def test_code_of_another_file_is_not_gte_qwen2s(tmp_path: Path) -> None:
    folder = copy_golden("qwen2", tmp_path / "m")
    change(folder / "config.json", auto_map={"AutoModel": "modeling_other.Qwen2Model"})
    with pytest.raises(ModelNotFoundError, match=r"modeling_other\.Qwen2Model"):
        check_settings(folder)


class TestLinearLayerBehindTheLastNorm:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return copy_golden("qwen3_projected", tmp_path / "m")

    def test_is_described_before_its_weights_are_there(self, folder: Path) -> None:
        assert read_checkpoint(folder).native_dimension == 40
        (folder / "model.safetensors").unlink()
        assert read_checkpoint(folder).native_dimension == 40

    def test_without_its_width_is_refused(self, folder: Path) -> None:
        change(folder / "config.json", num_labels=None)
        with pytest.raises(ModelNotFoundError, match=r"num_labels, the width of .*Qwen3BidirectionalModel"):
            read_checkpoint(folder)

    def test_that_is_not_there_is_refused(self, folder: Path) -> None:
        shutil.copy(GOLDEN / "qwen3" / "model" / "model.safetensors", folder / "model.safetensors")
        with pytest.raises(ModelNotFoundError, match=r"lacks the tensor linear\.weight"):
            read_checkpoint(folder)

    @pytest.mark.parametrize("pooling", ["max", "mean+lasttoken"])
    def test_does_not_go_behind_every_pooling(self, pooling: str, folder: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"ends with a linear layer \(linear\.weight\).* not "):
            read_checkpoint(folder, pooling=pooling)

    @pytest.mark.slow
    @pytest.mark.parametrize("pooling", ["cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
    def test_goes_behind_these(self, pooling: str, folder: Path) -> None:
        checkpoint = replace(read_checkpoint(folder, pooling=pooling), normalize=False)
        texts = read_golden("qwen3_projected").texts
        tokens = embed(replace(checkpoint, dense=()), replace(load_model(checkpoint), dense=()), texts)
        tensors = mx.load(str(folder / "model.safetensors"))
        assert isinstance(tensors, dict)
        expected = tokens @ np.array(tensors["linear.weight"]).T
        assert farthest(embed(checkpoint, load_model(checkpoint), texts), expected) < 1e-5

    def test_a_conversion_keeps_it(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "converted"
        convert_checkpoint(folder, target, UNQUANTIZED)
        assert np.array_equal(checkpoint_helpers.embed(target), checkpoint_helpers.embed(folder))
