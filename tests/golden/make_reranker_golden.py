"""Write tiny seeded rerankers of every architecture, and the scores that sentence-transformers gives pairs with them.

Run in an environment with torch and sentence-transformers, which the tests need not have:

    python tests/golden/make_reranker_golden.py [NAME ...]

Each folder in `rerankers/` gets `model/`, `pairs.json` and `scores.npz` (`scores`, float32, one pair at a time). The
scores of Qwen3-Reranker are those of the code on its model card, with transformers.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from make_golden import HERE, fill
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tiny import BERT, GROUPED, QWEN, ROBERTA, SIZES, Tensors
from tiny_tokenizers import (
    WORDS,
    bert_tokenizer,
    modernbert_tokenizer,
    qwen3_reranker_tokenizer,
    roberta_tokenizer,
    with_pairs,
    xlm_roberta_tokenizer,
)
from tokenizers import Tokenizer

FOLDER = HERE / "rerankers"
# Odd: of two long texts the longer one keeps a token more.
MAX_TOKENS = 47
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True)
class TinyReranker:
    """A tiny reranker: configuration, tokenizer and its class, and what is saved beside the weights."""

    config: transformers.PretrainedConfig
    tokenizer: Callable[[], Tokenizer]
    special: dict[str, str]
    # Settings for tokenizer_config.json and config.json.
    tokenizer_settings: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float16
    # Whether sentence-transformers saves the folder, with its own files.
    saved: bool = False
    publish: Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]] | None = None


def _as_new(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As gte-multilingual-reranker-base, with Alibaba's names."""
    rope = config.pop("rope_parameters")
    config |= {"model_type": "new", "architectures": ["NewForSequenceClassification"], "rope_theta": rope["rope_theta"]}
    config["auto_map"] = {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"}
    return config, {name.replace("gte.", "new.", 1): value for name, value in tensors.items()}


def checkpoints() -> dict[str, TinyReranker]:
    """Return the checkpoints by name."""
    t = transformers
    one = {"num_labels": 1}
    named = {"tokenizer_class": "BertTokenizer"}
    roberta = {**SIZES, "max_position_embeddings": 50, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
    distil = {"vocab_size": 320, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    narrow = {**SIZES, "vocab_size": 320, "embedding_size": 16, "max_position_embeddings": 64}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    kinds = {"full_attention": 3_000.0, "sliding_attention": 100.0}
    ropes = {"rope_parameters": {k: {"rope_type": "default", "rope_theta": v} for k, v in kinds.items()}}
    modern = {**SIZES, "num_hidden_layers": 4, "local_attention": 8, "max_position_embeddings": 64, **ropes}
    modern |= {"pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    gte = {**SIZES, **rope, "vocab_size": 320, "max_position_embeddings": 64}
    qwen = {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}, "pad_token_id": 0}
    qwen |= {"max_position_embeddings": 360}
    bert = {**SIZES, "vocab_size": 320, "max_position_embeddings": 64}
    return {
        "bert": TinyReranker(
            t.BertConfig(**bert, **one),
            with_pairs(bert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            named,
            {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        ),
        "bert_labels": TinyReranker(
            t.BertConfig(**bert, num_labels=3), with_pairs(bert_tokenizer, "[CLS]", "[SEP]"), BERT, named, saved=True
        ),
        "bert_one_segment": TinyReranker(
            t.BertConfig(**bert, **one),
            with_pairs(bert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh", "version": "4.0.1"}},
        ),
        "roberta": TinyReranker(
            t.RobertaConfig(**roberta, **one),
            with_pairs(roberta_tokenizer, "<s>", "</s>", separators=2),
            ROBERTA,
            {"tokenizer_class": "RobertaTokenizer"},
            saved=True,
        ),
        "xlm_roberta": TinyReranker(
            t.XLMRobertaConfig(**roberta, **one),
            with_pairs(xlm_roberta_tokenizer, "<s>", "</s>", separators=2),
            ROBERTA,
            {"tokenizer_class": "XLMRobertaTokenizer"},
        ),
        "modernbert": TinyReranker(
            t.ModernBertConfig(**modern, **one, classifier_pooling="mean", classifier_bias=True, norm_bias=True),
            with_pairs(modernbert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            {"model_input_names": ["input_ids", "attention_mask"]},
        ),
        "modernbert_cls": TinyReranker(
            t.ModernBertConfig(**modern, **one, classifier_pooling="cls", classifier_activation="silu"),
            with_pairs(modernbert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            {"model_input_names": ["input_ids", "attention_mask"]},
            saved=True,
        ),
        "distilbert": TinyReranker(
            t.DistilBertConfig(**distil, max_position_embeddings=64, **one),
            with_pairs(bert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            {"tokenizer_class": "DistilBertTokenizer"},
        ),
        "electra": TinyReranker(
            t.ElectraConfig(**narrow, **one),
            with_pairs(bert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            {"tokenizer_class": "ElectraTokenizer"},
        ),
        "gte": TinyReranker(
            t.GteConfig(**gte, **one, type_vocab_size=2), with_pairs(bert_tokenizer, "[CLS]", "[SEP]"), BERT, named
        ),
        "new": TinyReranker(
            t.GteConfig(**gte, **one, type_vocab_size=2),
            with_pairs(bert_tokenizer, "[CLS]", "[SEP]"),
            BERT,
            named,
            publish=_as_new,
        ),
        "qwen3_reranker": TinyReranker(
            t.Qwen3Config(**qwen, tie_word_embeddings=True), qwen3_reranker_tokenizer, QWEN, {}
        ),
        "qwen3_reranker_untied": TinyReranker(
            t.Qwen3Config(**qwen, tie_word_embeddings=False), qwen3_reranker_tokenizer, QWEN, {}
        ),
    }


def pairs_of(seed: int) -> list[list[str]]:
    """Return pairs of mixed lengths: short, long, and long on one side only; several of one query."""
    rng = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count))

    lengths = [
        (1, 1),
        (2, 9),
        (3, 4),
        (5, 30),
        (4, 44),
        (6, 80),
        (40, 2),
        (70, 6),
        (60, 61),
        (61, 60),
        (90, 130),
        (22, 21),
    ]
    pairs = [[words(first), words(second)] for first, second in lengths]
    query = words(4)
    pairs += [[query, words(count)] for count in (3, 12, 25, 60)]
    return [
        *pairs,
        ["Naïve ☃ 日本?", "Stone, paper; water (river) 42"],
        ["the the", "[SEP] {query} %s"],
        ["a", "<s> ↵"],
    ]


def answers(folder: Path, pairs: list[list[str]]) -> np.ndarray:
    """Return the scores by the code on the model card of Qwen3-Reranker, one pair at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    no, yes = (tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes"))
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in (_BEFORE, _AFTER))
    scores = []
    for query, text in pairs:
        content = f"<Instruct>: {_INSTRUCTION}\n<Query>: {query}\n<Document>: {text}"
        room = model.config.max_position_embeddings - len(before) - len(after)
        ids = tokenizer(content, truncation="longest_first", max_length=room)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + ids + after])).logits[0, -1]
        scores.append(torch.softmax(torch.stack([logits[no], logits[yes]]), dim=0)[1].item())
    return np.array(scores, dtype=np.float32)


def save(folder: Path, tiny: TinyReranker, seed: int) -> None:
    """Save a checkpoint's weights, settings and tokenizer."""
    causal = tiny.config.model_type == "qwen3"
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    model = auto.from_config(tiny.config)
    fill(model, seed, norms_around=1.0)
    if causal:
        # The rows of the answers decide: far enough from each other, the scores are neither 0 nor 1.
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(0.3)
    model.to(tiny.dtype).save_pretrained(folder)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer(), model_max_length=MAX_TOKENS, **tiny.special
    )
    wrapped.save_pretrained(folder)
    for name, changes in (("tokenizer_config.json", tiny.tokenizer_settings), ("config.json", tiny.settings)):
        value = {**json.loads((folder / name).read_text("utf-8")), **changes}
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def write(name: str, tiny: TinyReranker, seed: int) -> None:
    """Write one checkpoint's folder."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    pairs = pairs_of(seed)
    with tempfile.TemporaryDirectory() as scratch:
        save(Path(scratch), tiny, seed)
        if tiny.config.model_type == "qwen3":
            scores = answers(Path(scratch), pairs)
        else:
            reference = CrossEncoder(scratch, device="cpu", model_kwargs={"dtype": torch.float32})
            scores = np.stack([reference.predict([pair])[0] for pair in pairs])
            assert reference.max_seq_length == MAX_TOKENS
        if tiny.saved:
            reference.save_pretrained(str(folder / "model"), create_model_card=False)
            shutil.copy(f"{scratch}/model.safetensors", folder / "model" / "model.safetensors")
        else:
            shutil.copytree(scratch, folder / "model")
    if tiny.config.model_type == "qwen3":
        # What makes a language model a reranker is on its card.
        (folder / "model" / "README.md").write_text("---\npipeline_tag: text-ranking\n---\n", encoding="utf-8")
    if tiny.publish:
        file = folder / "model" / "config.json"
        config, tensors = tiny.publish(
            json.loads(file.read_text("utf-8")), load_file(folder / "model" / "model.safetensors")
        )
        file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model" / "model.safetensors")
    assert np.isfinite(scores).all()
    (folder / "pairs.json").write_text(json.dumps(pairs, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(folder / "scores.npz", scores=scores.astype(np.float32))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {len(pairs)} pairs, scores {scores.min():.3f} to {scores.max():.3f}, {size / 1024:.0f} KiB")


def main(names: list[str]) -> None:
    for name, tiny in checkpoints().items():
        if not names or name in names:
            write(name, tiny, zlib.crc32(f"reranker {name}".encode()))


if __name__ == "__main__":
    main(sys.argv[1:])
