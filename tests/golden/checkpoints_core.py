"""Tiny checkpoints of the architectures that are most used."""

from __future__ import annotations

import torch
import transformers
from tiny import ALL_MODES, BERT, GEMMA, GEMMA_SIZES, GROUPED, HEAD, PROMPTS, QWEN, ROBERTA, SHORT, SIZES, Tiny
from tiny_tokenizers import (
    bert_tokenizer,
    gemma_tokenizer,
    llama_tokenizer,
    modernbert_tokenizer,
    qwen3_tokenizer,
    roberta_tokenizer,
    xlm_roberta_tokenizer,
)


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
