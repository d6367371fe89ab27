"""Checkpoints in the layout in which they are published, built small from the golden ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from checkpoint_helpers import change, front_matter, write
from golden_models import GOLDEN

from akidb_mlx_plugin.types import Similarity

MODULES = "Transformer Pooling Normalize"
# As versions of sentence-transformers before 5.5 write 1_Pooling/config.json.
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# What published checkpoints of an architecture say of their tokenizers, by the golden that stands for it.
_TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None},
    "distilbert": {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True},
    "gemma3_text": {"tokenizer_class": "GemmaTokenizer"},
    "mistral": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True},
    "modernbert": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "modernbert_bias": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "mpnet": {"tokenizer_class": "MPNetTokenizer", "do_lower_case": True},
    "qwen3": {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False},
    "qwen3_projected": {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False},
    "roberta": {"tokenizer_class": "RobertaTokenizer", "trim_offsets": True},
    "t5": {"tokenizer_class": "T5Tokenizer", "extra_ids": 0},
    "xlm_roberta": {"tokenizer_class": "XLMRobertaTokenizer"},
}


@dataclass(frozen=True)
class Published:
    """One layout: what its files say, and what must come out.

    Attributes:
        repos: repositories that have it.
        golden: tiny checkpoint of its architecture.
        width: of its vectors, really.
        modules: kinds of its pipeline; "": a bare folder.
        pooling: mode.
        tokens: `max_seq_length` of sentence_bert_config.json; None: there is no such file.
        prompts: of config_sentence_transformers.json; None: it has none.
        query, document: prompts that come out where the repository is known.
        files: further settings by file; a value of None drops the setting.
        dense: folder of the dense layer, where it is not named after its place.
        activation: of a dense layer that is made up where the golden has none; it has a bias.
        base_model: of the front matter of README.md.
        is_told: whether its prompts alone tell its family.
        converted: as converters to MLX leave it: no folders, dense layers inside the weights.
        similarity: what vectors are compared by.
        dimensions: lengths that vectors may be cut to beside the whole; None: that one alone.
        longest: of a text in tokens; None: `tokens`.
        end: token that every text ends with, whatever the tokenizer's template says.
    """

    repos: tuple[str, ...]
    golden: str
    width: int
    modules: str = MODULES
    pooling: str = "mean"
    tokens: int | None = 512
    prompts: Mapping[str, str] | None = None
    query: str = ""
    document: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dense: str = ""
    activation: str = "linear.Identity"
    base_model: str = ""
    is_told: bool = False
    converted: bool = False
    similarity: Similarity = "cosine"
    dimensions: range | tuple[int, ...] | None = None
    longest: int | None = None
    end: str | None = None

    @property
    def normalize(self) -> bool:
        """Whether vectors have unit length: by the last module, and in a bare folder where cosine compares them."""
        return self.modules.endswith("Normalize") if self.modules else self.similarity == "cosine"

    @property
    def knows_prompts(self) -> bool:
        """Whether the folder says its prompts by itself, or that it has none."""
        own = [(self.prompts or {}).get(name) for name in ("query", "document", "passage")]
        return bool(self.base_model) or any(own) or not (self.query or self.document)

    @property
    def tokenizer(self) -> Mapping[str, Any]:
        """What tokenizer_config.json says beside the length."""
        return {**_TOKENIZERS.get(self.golden, {}), **self.files.get("tokenizer_config.json", {})}

    def build(self, folder: Path) -> Path:
        """Write it into a folder that is not there yet; returns the folder."""
        shutil.copytree(GOLDEN / self.golden / "model", folder)
        heads = sorted(folder.glob("*_Dense"))
        for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
            (folder / name).unlink()
        for place in folder.glob("[1-9]_[!D]*"):
            shutil.rmtree(place)
        if self.modules:
            self._write_pipeline(folder, heads)
        if self.converted:
            _move_heads_inside(folder, heads)
        if self.tokens:
            write(folder / "sentence_bert_config.json", {"max_seq_length": self.tokens, "do_lower_case": False})
        if self.modules:
            versions = {"sentence_transformers": "3.1.1", "transformers": "4.45.2", "pytorch": "2.4.1"}
            prompts = {} if self.prompts is None else {"prompts": dict(self.prompts), "default_prompt_name": None}
            write(folder / "config_sentence_transformers.json", {"__version__": versions, **prompts})
        change(folder / "tokenizer_config.json", model_max_length=self.longest or self.tokens, **self.tokenizer)
        for name, settings in self.files.items():
            change(folder / name, **settings)
            content = json.loads((folder / name).read_text("utf-8"))
            write(folder / name, {key: value for key, value in content.items() if settings.get(key, 0) is not None})
        facts = {"library_name": "mlx" if self.converted else "sentence-transformers", "tags": ["feature-extraction"]}
        front_matter(folder, **facts, **({"base_model": self.base_model} if self.base_model else {}))
        for place in heads:
            if place.is_dir() and "Dense" not in self.modules:
                shutil.rmtree(place)
        return folder

    def _write_pipeline(self, folder: Path, heads: list[Path]) -> None:
        entries = []
        for i, kind in enumerate(self.modules.split()):
            path = "" if kind == "Transformer" else f"{i}_{kind}"
            if kind == "Dense" and self.dense:
                path = self.dense
                heads[:1] = [place.rename(folder / path) for place in heads[:1]]
            entries.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"})
        write(folder / "modules.json", entries)
        if "Dense" in self.modules and not heads:
            side = json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"]
            _make_head(folder / (self.dense or "2_Dense"), side, self.activation)
        if not self.converted:
            flags = {flag: mode == self.pooling for mode, flag in _FLAGS.items()}
            write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": self.width, **flags})


def _make_head(place: Path, side: int, activation: str) -> None:
    """Write a square dense layer with a bias."""
    settings = {"in_features": side, "out_features": side, "bias": True}
    write(place / "config.json", {**settings, "activation_function": f"torch.nn.modules.{activation}"})
    weight, bias = (mx.random.normal(shape, key=mx.random.key(2)) * 0.3 for shape in ((side, side), (side,)))
    mx.save_safetensors(str(place / "model.safetensors"), {"linear.weight": weight, "linear.bias": bias})


def _move_heads_inside(folder: Path, heads: list[Path]) -> None:
    """Move the dense layers of folders into the weights, as mlx-embeddings does."""
    file = folder / "model.safetensors"
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    for i, place in enumerate(heads):
        layer = mx.load(str(place / "model.safetensors"))
        assert isinstance(layer, dict)
        tensors |= {f"dense.{i}.{name.removeprefix('linear.')}": value for name, value in layer.items()}
    mx.eval(tensors)
    for place in heads:
        shutil.rmtree(place)
    mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
