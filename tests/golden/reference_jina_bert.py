"""jina-embeddings-v2 in torch, for making golden vectors alone: transformers has no implementation of it.

Written anew, from what can be read of the two implementations that the published checkpoints name in `auto_map`:
`jinaai/jina-bert-implementation` as computed by text-embeddings-inference (`backends/candle/src/models/jina.rs`, whose
gate is the first half of `gated_layers`) and by its ports, and `jinaai/jina-bert-v2-qk-post-norm` as in the copy of its
`modeling_bert.py` that was proposed to transformers, and in text-embeddings-inference (`jina_code.rs`). Both add ALiBi
to the scaled scores whatever the texts' length, symmetric in the distance. Parameters have the published names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def slopes(heads: int) -> list[float]:
    """Return the slopes of Press et al. 2021, with their remedy for numbers that are no powers of two."""
    if math.log2(heads).is_integer():
        start = 2 ** -(2 ** -(math.log2(heads) - 3))
        return [start ** (i + 1) for i in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return slopes(lower) + slopes(2 * lower)[::2][: heads - lower]


class SelfAttention(nn.Module):
    def __init__(self, config: BertConfig, qk_norm: bool) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.qk_norm = qk_norm
        if qk_norm:
            self.layer_norm_q, self.layer_norm_k = (norm(config) for _ in range(2))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.qk_norm:
            q, k = self.layer_norm_q(q), self.layer_norm_k(k)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias, dim=-1)
        return (weights @ v).transpose(1, 2).flatten(-2)


class Output(nn.Module):
    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = norm(config)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def __init__(self, config: BertConfig, qk_norm: bool) -> None:
        super().__init__()
        self.self = SelfAttention(config, qk_norm)
        self.output = Output(config.hidden_size, config)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(x, bias), x)


class Layer(nn.Module):
    """A layer of jina-bert-implementation."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.kind, inner = config.feed_forward_type, config.intermediate_size
        self.attention = Attention(config, qk_norm=False)
        if self.kind == "original":
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, inner)})
            self.output = Output(inner, config)
        else:
            self.mlp = nn.ModuleDict(
                {
                    "gated_layers": nn.Linear(config.hidden_size, 2 * inner, bias=False),
                    "wo": nn.Linear(inner, config.hidden_size),
                    "layernorm": norm(config),
                }
            )

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, bias)
        if self.kind == "original":
            return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)
        gate, up = self.mlp["gated_layers"](x).chunk(2, dim=-1)
        return self.mlp["layernorm"](self.mlp["wo"](activate(self.kind, gate) * up) + x)


class PostNormLayer(nn.Module):
    """A layer of jina-bert-v2-qk-post-norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.kind, inner = config.feed_forward_type, config.intermediate_size
        self.attention = Attention(config, qk_norm=True)
        self.layer_norm_1, self.layer_norm_2 = (norm(config) for _ in range(2))
        up = ("up_layer", inner) if self.kind == "original" else ("up_gated_layer", 2 * inner)
        self.mlp = nn.ModuleDict(
            {
                up[0]: nn.Linear(config.hidden_size, up[1], bias=False),
                "down_layer": nn.Linear(inner, config.hidden_size),
            }
        )

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.layer_norm_1(x + self.attention(x, bias))
        if self.kind == "original":
            inner = nn.functional.gelu(self.mlp["up_layer"](x))
        else:
            up, gate = self.mlp["up_gated_layer"](x).chunk(2, dim=-1)
            inner = up * activate(self.kind, gate)
        return self.layer_norm_2(x + self.mlp["down_layer"](inner))


class JinaBertModel(PreTrainedModel):
    """The encoder, with the pooler that the published checkpoints have."""

    config_class = BertConfig
    base_model_prefix = "bert"
    layer_class: type[nn.Module] = Layer

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, config.hidden_size),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, config.hidden_size),
                "LayerNorm": norm(config),
            }
        )
        layers = nn.ModuleList(self.layer_class(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> BaseModelOutput:
        segment = self.embeddings["token_type_embeddings"](torch.zeros_like(input_ids))
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](input_ids) + segment)
        place = torch.arange(input_ids.shape[1])
        alibi = -torch.tensor(slopes(self.config.num_attention_heads))[:, None, None] * (place[:, None] - place).abs()
        hidden = torch.where(attention_mask.bool(), 0.0, torch.finfo(torch.float32).min)[:, None, None]
        for layer in self.encoder["layer"]:
            x = layer(x, alibi + hidden)
        return BaseModelOutput(last_hidden_state=x)


class PostNormJinaBertModel(JinaBertModel):
    layer_class = PostNormLayer


def norm(config: BertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def activate(kind: str, gate: torch.Tensor) -> torch.Tensor:
    return {"geglu": nn.functional.gelu, "reglu": nn.functional.relu}[kind](gate)
