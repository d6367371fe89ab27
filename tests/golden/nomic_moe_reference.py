"""NomicBERT with experts in torch, for golden vectors alone: transformers has the architecture without them.

From these facts: nomic-ai's `contrastors` (attention, order of the norms, rotary positions), the tensors and settings
of nomic-embed-text-v2-moe as ports of it describe them (text-embeddings-inference `nomic.rs`, vLLM
`bert_with_rope.py`, tt-metal `nomic_embed_text_v2_moe`, which is bit-exact with the published code): every layer `i`
with `i % moe_every_n_layers == 1` has experts; softmax over all of them, the best `moe_top_k` not normalized again;
`w1` and `w2` hold (F, D) matrices one below the other, of which `w2` is not transposed; one bias after the sum.
Tensors and settings have their published names.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class NomicMoeConfig(PretrainedConfig):
    model_type = "nomic_moe_reference"
    attribute_map: ClassVar = {"hidden_size": "n_embd"}

    vocab_size: int = 448
    n_embd: int = 32
    n_head: int = 4
    n_inner: int = 64
    n_layer: int = 2
    num_experts: int = 4
    moe_top_k: int = 2
    moe_every_n_layers: int = 2
    layer_norm_epsilon: float = 1e-5
    rotary_emb_base: float = 10_000.0


class Attention(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.heads, self.base = config.n_head, config.rotary_emb_base
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.Wqkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        half = q.shape[-1] // 2
        angles = torch.outer(torch.arange(length), self.base ** (-torch.arange(half) / half))
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (self.turned(t, turn) for t in (q, k))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None].bool())
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))

    @staticmethod
    def turned(t: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        first, second = t.chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)


class MLP(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, config.n_inner)
        self.fc2 = nn.Linear(config.n_inner, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class MoE(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        rows = config.num_experts * config.n_inner
        self.count, self.per_token = config.num_experts, config.moe_top_k
        self.router = nn.ModuleDict({"layer": nn.Linear(config.n_embd, config.num_experts, bias=False)})
        self.experts = nn.Module()
        self.experts.mlp = nn.Module()
        for name in ("w1", "w2"):
            self.experts.mlp.register_parameter(name, nn.Parameter(torch.zeros(rows, config.n_embd)))
        self.experts.register_parameter("bias", nn.Parameter(torch.zeros(config.n_embd)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities = self.router["layer"](x).softmax(-1)
        shares = torch.zeros_like(probabilities)
        best = probabilities.topk(self.per_token)
        shares.scatter_(-1, best.indices, best.values)
        w1, w2 = (w.view(self.count, -1, x.shape[-1]) for w in (self.experts.mlp.w1, self.experts.mlp.w2))
        hidden = nn.functional.gelu(torch.einsum("bld,efd->blef", x, w1))
        return torch.einsum("blef,efd,ble->bld", hidden, w2, shares) + self.experts.bias


class Layer(nn.Module):
    def __init__(self, config: NomicMoeConfig, index: int) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MoE(config) if index % config.moe_every_n_layers == 1 else MLP(config)
        self.norm1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.norm2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attn(x, visible))
        return self.norm2(x + self.mlp(x))


class NomicMoeModel(PreTrainedModel):
    config_class = NomicMoeConfig

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__(config)
        tables = {"word_embeddings": config.vocab_size, "token_type_embeddings": 1}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(rows, config.n_embd) for name, rows in tables.items()})
        self.emb_ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layer))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> BaseModelOutput:
        x = self.embeddings["word_embeddings"](input_ids) + self.embeddings["token_type_embeddings"].weight[0]
        x = self.emb_ln(x)
        for layer in self.encoder["layers"]:
            x = layer(x, attention_mask)
        return BaseModelOutput(last_hidden_state=x)


AutoConfig.register(NomicMoeConfig.model_type, NomicMoeConfig)
AutoModel.register(NomicMoeConfig, NomicMoeModel)
