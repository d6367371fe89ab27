"""Write tiny seeded checkpoints of every architecture, and the vectors that sentence-transformers makes with them.

Run in an environment with torch and sentence-transformers, which the tests need not have:

    python tests/golden/make_golden.py [NAME ...]

Each folder gets `model/`, `texts.json` and `vectors.npz` (`document` and `query`, float32, one text at a time).
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
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny_tokenizers import (
    WORDS,
    bert_tokenizer,
    gemma_tokenizer,
    llama_tokenizer,
    modernbert_tokenizer,
    qwen3_tokenizer,
    roberta_tokenizer,
    save_tokenizer,
    xlm_roberta_tokenizer,
)
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ALL_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PROMPTS = {"query": "the question of time: ", "document": "", "task": "some work "}


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint: configuration, tokenizer, what comes behind the encoder, and the token counts of its texts."""

    config: transformers.PretrainedConfig
    tokenizer: Callable[[], Tokenizer]
    special: dict[str, str]
    max_tokens: int
    lengths: tuple[int, ...]
    pooling: dict[str, Any]
    dense: tuple[dict[str, Any], ...] = ()
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dtype: torch.dtype = torch.float32
    with_head: bool = False


BERT = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
SIZES = {
    "vocab_size": 448,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
GROUPED = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16}
GEMMA_SIZES = {
    **GROUPED,
    "vocab_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_size": 48,
    "query_pre_attn_scalar": 24,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEAD = (
    {"in_features": 48, "out_features": 96, "bias": False, "activation_function": torch.nn.Identity()},
    {"in_features": 96, "out_features": 48, "bias": False, "activation_function": torch.nn.Identity()},
)
SHORT = (2, 3, 4, 5, 8, 13, 21, 34, 47, 48, 49, 70)


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    t = transformers
    bert = t.BertConfig(**SIZES, max_position_embeddings=64)
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}
    windows = {"full_attention": 3_000.0, "sliding_attention": 100.0}
    ropes = {"rope_parameters": {k: {"rope_type": "default", "rope_theta": v} for k, v in windows.items()}}
    gemma = {**GEMMA_SIZES, **ropes, "use_bidirectional_attention": True, "sliding_window": 8}
    layers = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}
    modern = {**SIZES, "num_hidden_layers": 4, "local_attention": 8, "max_position_embeddings": 64, **ropes}
    modern |= {"pad_token_id": 3, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    bias = {"norm_bias": True, "attention_bias": True, "mlp_bias": True}
    qwen = {**GROUPED, **rope, "tie_word_embeddings": True, "pad_token_id": 0, "max_position_embeddings": 64}
    mean, last = {"pooling_mode": "mean"}, {"pooling_mode": "lasttoken"}
    every = {"pooling_mode": ALL_MODES, "include_prompt": False}
    wide = (
        {"in_features": 192, "out_features": 24, "activation_function": torch.nn.GELU(), "use_residual": True},
        {"in_features": 24, "out_features": 24, "activation_function": torch.nn.Tanh(), "use_residual": True},
    )
    return {
        "bert": Tiny(bert, bert_tokenizer, BERT, 48, SHORT, mean),
        "bert_all_pooling": Tiny(
            bert, bert_tokenizer, BERT, 48, SHORT, every, wide, False, PROMPTS, default_prompt="task"
        ),
        "roberta": Tiny(
            t.RobertaConfig(**SIZES, max_position_embeddings=50, layer_norm_eps=1e-5, type_vocab_size=1),
            roberta_tokenizer,
            ROBERTA,
            48,
            SHORT,
            mean,
            with_head=True,
        ),
        "xlm_roberta": Tiny(
            t.XLMRobertaConfig(**SIZES, max_position_embeddings=50, layer_norm_eps=1e-5, type_vocab_size=1),
            xlm_roberta_tokenizer,
            ROBERTA,
            48,
            SHORT,
            {"pooling_mode": "cls"},
            prompts={"query": "question: ", "passage": "paper: "},
            dtype=torch.float16,
        ),
        "modernbert": Tiny(t.ModernBertConfig(**modern), modernbert_tokenizer, BERT, 48, SHORT, mean),
        "modernbert_bias": Tiny(
            t.ModernBertConfig(**modern, **bias),
            modernbert_tokenizer,
            BERT,
            48,
            SHORT,
            {"pooling_mode": "cls"},
            dtype=torch.bfloat16,
        ),
        "qwen3": Tiny(t.Qwen3Config(**qwen), qwen3_tokenizer, QWEN, 48, SHORT, last, prompts=PROMPTS),
        "qwen3_window": Tiny(
            t.Qwen3Config(**qwen, use_sliding_window=True, sliding_window=6, max_window_layers=1, attention_bias=True),
            qwen3_tokenizer,
            QWEN,
            48,
            SHORT,
            last,
            dtype=torch.bfloat16,
            with_head=True,
        ),
        "qwen3_both_ways": Tiny(
            t.Qwen3Config(**qwen, is_causal=False),
            qwen3_tokenizer,
            QWEN,
            48,
            SHORT,
            mean,
            dtype=torch.bfloat16,
        ),
        "gemma3_text": Tiny(
            t.Gemma3TextConfig(**gemma, **layers), gemma_tokenizer, GEMMA, 48, SHORT, mean, HEAD, prompts=PROMPTS
        ),
        "gemma3_text_wide": Tiny(
            t.Gemma3TextConfig(**{**gemma, **layers, "sliding_window": 512}),
            gemma_tokenizer,
            GEMMA,
            600,
            (2, 17, 255, 256, 257, 258, 259, 260, 300, 514, 599, 600, 640),
            mean,
            HEAD,
            dtype=torch.bfloat16,
        ),
        "gemma3_text_causal": Tiny(
            t.Gemma3TextConfig(**{**gemma, **layers, "use_bidirectional_attention": False, "sliding_window": 6}),
            gemma_tokenizer,
            GEMMA,
            48,
            SHORT,
            last,
            dtype=torch.bfloat16,
        ),
        "llama": Tiny(
            t.LlamaConfig(**GROUPED, max_position_embeddings=64, tie_word_embeddings=False),
            llama_tokenizer,
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
            48,
            SHORT,
            last,
            prompts=PROMPTS,
            dtype=torch.bfloat16,
            with_head=True,
        ),
    }


def fill(model: torch.nn.Module, seed: int, *, norms_around: float) -> None:
    """Give a model weights large enough that every part of it shows in the vectors; fresh ones hardly attend."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(norms_around + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.6 * noise / parameter.shape[-1] ** 0.5)


def texts_of(tokenizer: Tokenizer, lengths: tuple[int, ...], seed: int) -> list[str]:
    """Return texts of about these numbers of tokens, special ones included, and a few odd ones."""
    rng = random.Random(seed)
    texts = ["", "a", "Naïve ☃ 日本", "the the the the", "Stone, paper; water? (river) 42"]
    for length in lengths:
        words = [rng.choice(WORDS)]
        while len(tokenizer.encode(" ".join(words)).ids) < length:
            words.append(rng.choice(WORDS))
        texts.append(" ".join(words))
    rng.shuffle(texts)
    return texts


def write(name: str, tiny: Tiny, seed: int) -> None:
    """Write one checkpoint's folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    auto = transformers.AutoModelForMaskedLM if "roberta" in name else transformers.AutoModelForCausalLM
    model = (auto if tiny.with_head else transformers.AutoModel).from_config(tiny.config)
    fill(model, seed, norms_around=0.0 if "gemma" in name else 1.0)
    with tempfile.TemporaryDirectory() as scratch:
        model.to(tiny.dtype).save_pretrained(scratch)
        tokenizer = tiny.tokenizer()
        save_tokenizer(tokenizer, Path(scratch), tiny.max_tokens, **tiny.special)
        encoder = Transformer(scratch, model_kwargs={"dtype": torch.float32})
        modules = [encoder, Pooling(tiny.config.hidden_size, **tiny.pooling)]
        modules += [Dense(**settings) for settings in tiny.dense]
        for i, layer in enumerate(modules[2:]):
            fill(layer, seed + 1 + i, norms_around=1.0)
        modules += [Normalize()] if tiny.normalize else []
        pipeline = SentenceTransformer(
            modules=modules, prompts=tiny.prompts, default_prompt_name=tiny.default_prompt, device="cpu"
        ).eval()
        pipeline.save(str(folder / "model"), create_model_card=False)
        # The weights as they were made: with their head, and in their own format.
        shutil.copy(f"{scratch}/model.safetensors", folder / "model" / "model.safetensors")
        shutil.copy(f"{scratch}/config.json", folder / "model" / "config.json")
    texts = texts_of(tokenizer, tiny.lengths, seed)
    vectors = {
        "document": pipeline.encode_document(texts, batch_size=1),
        "query": pipeline.encode_query(texts, batch_size=1),
    }
    assert all(np.isfinite(value).all() for value in vectors.values())
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(folder / "vectors.npz", **{k: v.astype(np.float32) for k, v in vectors.items()})
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {len(texts)} texts, {vectors['document'].shape[1]} dimensions, {size / 1024:.0f} KiB")


def main(names: list[str]) -> None:
    for name, tiny in checkpoints().items():
        if not names or name in names:
            write(name, tiny, zlib.crc32(name.encode()))


if __name__ == "__main__":
    main(sys.argv[1:])
