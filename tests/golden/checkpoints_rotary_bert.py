"""Tiny checkpoints of encoders with rotary positions: nomic-embed, gte v1.5, jina v3 and EuroBERT.

transformers writes the tensors of the first three by the names that they are published with, but its own settings; the
settings of published checkpoints are made from them here.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from nomic_moe_reference import NomicMoeConfig
from tiny import BERT, GROUPED, PROMPTS, ROBERTA, SHORT, SIZES, Tensors, Tiny
from tiny_tokenizers import bert_tokenizer, llama_tokenizer, xlm_roberta_tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.nomic_bert import modeling_nomic_bert

_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
_NOMIC_PROMPTS = {"query": "search_query: ", "document": "search_document: ", "clustering": "clustering: "}
# What nomic-embed-text-v1.5 has.
_NOMIC = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "causal": False,
    "fused_bias_fc": True,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 64,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 256,
    "n_layer": 2,
    "n_positions": 256,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 64,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 100,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 448,
}


class _FreshRotaryEmbedding(modeling_nomic_bert.NomicBertRotaryEmbedding):
    """Forgets the longest text so far: what a text gets must not depend on those before it."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        self.max_seq_len_cached, self.inv_freq = self.original_max_seq_len, self.original_inv_freq
        return super().forward(x, position_ids)


modeling_nomic_bert.NomicBertRotaryEmbedding = _FreshRotaryEmbedding


def _ntk(config: Any, device: Any = None, seq_len: Any = None, **_: Any) -> tuple[torch.Tensor, float]:
    """Fixed NTK scaling, which transformers lacks; source: https://kexue.fm/archives/9706, equation 6."""
    factor, theta = config.rope_parameters["factor"], config.rope_parameters["rope_theta"]
    half = config.hidden_size // config.num_attention_heads // 2
    i = torch.arange(half, dtype=torch.float32)
    return 1.0 / (theta ** (i / half) * factor ** ((i + 1) / half)), 1.0


ROPE_INIT_FUNCTIONS["ntk"] = _ntk


def _rope(theta: float, kind: str = "default", **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


def _as_nomic(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    # The real code rounds both up, to 448 and 256.
    return _NOMIC | {"vocab_size": 440, "n_inner": 250}, tensors


def _as_long_nomic(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _NOMIC | {"rotary_scaling_factor": 2, "max_trained_positions": 16}, tensors


def _as_nomic_moe(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    kept = {key: config[key] for key in config if key in NomicMoeConfig.__annotations__}
    biases = dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), True)
    moe = {"expert_choice_router": False, "ffn_div": 1, "moe_normalize_expert_weights": False, "num_shared_experts": 0}
    other = {"activation_function": "gelu", "type_vocab_size": 1, "pad_token_id": 1, "moe_impl": "megablocks"}
    return _NOMIC | kept | biases | moe | other, tensors


def _as_new(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """As gte-multilingual-base: settings of Alibaba's code, fixed NTK scaling, a head for token weights."""
    rope = config.pop("rope_parameters")
    config |= {
        "model_type": "new",
        "architectures": ["NewForTokenClassification"],
        "layer_norm_type": "layer_norm",
        "logn_attention_clip1": False,
        "logn_attention_scale": False,
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": {"factor": rope["factor"], "type": "ntk"},
        "rope_theta": rope["rope_theta"],
        "unpad_inputs": False,
        "use_memory_efficient_attention": False,
    }
    head = {"classifier.weight": torch.ones(1, 32, dtype=torch.float16), "classifier.bias": torch.ones(1)}
    return config, {f"new.{name}": value for name, value in tensors.items()} | head


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    t = transformers
    mean, cls = {"pooling_mode": "mean"}, {"pooling_mode": "cls"}
    nomic = t.NomicBertConfig(**SIZES, **_rope(100.0), max_position_embeddings=32)
    wide = {**SIZES, "intermediate_size": 256}
    new = t.GteConfig(**SIZES, **_rope(20.0, "ntk", factor=8.0), type_vocab_size=2, max_position_embeddings=64)
    euro = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    dense = ({"in_features": 32, "out_features": 48, "activation_function": torch.nn.Identity()},)
    return {
        "nomic_bert": Tiny(nomic, bert_tokenizer, BERT, 48, SHORT, mean, prompts=PROMPTS),
        "nomic_bert_published": Tiny(
            t.NomicBertConfig(**wide, **_rope(100.0)),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            mean,
            prompts=_NOMIC_PROMPTS,
            dtype=torch.bfloat16,
            publish=_as_nomic,
        ),
        "nomic_bert_long": Tiny(
            t.NomicBertConfig(**wide, **_rope(100.0, "dynamic", factor=2.0), max_position_embeddings=16),
            bert_tokenizer,
            BERT,
            48,
            (2, 5, 12, 15, 16, 17, 18, 24, 33, 47, 48, 60),
            cls,
            dtype=torch.bfloat16,
            publish=_as_long_nomic,
        ),
        "nomic_bert_moe": Tiny(
            NomicMoeConfig(n_layer=4, n_inner=48, rotary_emb_base=100.0),
            xlm_roberta_tokenizer,
            ROBERTA,
            48,
            SHORT,
            mean,
            prompts=_NOMIC_PROMPTS,
            dtype=torch.bfloat16,
            publish=_as_nomic_moe,
        ),
        "gte": Tiny(
            t.GteConfig(**SIZES, **_rope(100.0), type_vocab_size=0, max_position_embeddings=64, pad_token_id=0),
            bert_tokenizer,
            BERT,
            48,
            SHORT,
            cls,
        ),
        "new": Tiny(
            new,
            xlm_roberta_tokenizer,
            ROBERTA,
            48,
            SHORT,
            mean,
            dense,
            prompts={"query": "query: "},
            dtype=torch.float16,
            publish=_as_new,
        ),
        "jina_embeddings_v3": Tiny(
            t.JinaEmbeddingsV3Config(**SIZES, **_rope(100.0), max_position_embeddings=64),
            xlm_roberta_tokenizer,
            ROBERTA,
            48,
            SHORT,
            mean,
            prompts=PROMPTS,
        ),
        "eurobert": Tiny(
            t.EuroBertConfig(**GROUPED, **_rope(100.0), **euro, max_position_embeddings=64),
            llama_tokenizer,
            _LLAMA,
            48,
            SHORT,
            mean,
            prompts=PROMPTS,
            dtype=torch.bfloat16,
        ),
    }
