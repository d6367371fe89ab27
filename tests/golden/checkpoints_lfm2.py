"""Tiny checkpoints of LFM2 and of the encoder made of it."""

from __future__ import annotations

from types import MethodType

import torch
import transformers
from tiny import PROMPTS, SHORT, SIZES, Tiny
from tiny_tokenizers import lfm2_tokenizer
from transformers.models.lfm2.modeling_lfm2 import Lfm2Model, Lfm2ShortConv

_LFM2 = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}


class Lfm2BidirectionalModel(Lfm2Model):
    """The encoder of LiquidAI/LFM2.5-Embedding-350M, as its modeling_lfm2_bidirectional.py makes it of the decoder.

    Attention sees everything, and the window of each convolution lies around the token and not behind it.
    """

    def __init__(self, config: transformers.Lfm2Config) -> None:
        super().__init__(config)
        for layer in self.layers:
            if layer.is_attention_layer:
                layer.self_attn.is_causal = False
            else:
                layer.conv.forward = MethodType(_convolve_around, layer.conv)

    def forward(self, input_ids: torch.Tensor, **_: object) -> transformers.utils.ModelOutput:
        # One text at a time: nothing is padded, and nothing masked.
        return super().forward(input_ids, attention_mask={"full_attention": None, "conv": None})


def _convolve_around(self: Lfm2ShortConv, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
    before, after, value = self.in_proj(hidden_states).transpose(1, 2).chunk(3, dim=1)
    weight = self.conv.weight
    mixed = torch.nn.functional.conv1d(
        before * value, weight, self.conv.bias, padding=weight.shape[-1] // 2, groups=len(weight)
    )
    return self.out_proj((after * mixed[..., : value.shape[-1]]).transpose(1, 2))


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000.0}}
    sizes = {**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, **rope}
    sizes |= {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    # 2/3 of 64 are 42, of which 0.9 are 37, in steps of 8.
    sizes |= {"block_multiple_of": 8, "block_ffn_dim_multiplier": 0.9, "norm_eps": 1e-5}
    code = {"auto_map": {"AutoModel": "modeling_lfm2_bidirectional.Lfm2BidirectionalModel"}}
    cls, last = {"pooling_mode": "cls"}, {"pooling_mode": "lasttoken"}
    config = transformers.Lfm2Config
    return {
        "lfm2": Tiny(config(**sizes), lfm2_tokenizer, _LFM2, 48, SHORT, last, prompts=PROMPTS, with_head=True),
        "lfm2_bias": Tiny(
            config(**sizes, conv_bias=True, conv_L_cache=4, block_auto_adjust_ff_dim=False, is_causal=False),
            lfm2_tokenizer,
            _LFM2,
            48,
            SHORT,
            {"pooling_mode": "mean"},
            dtype=torch.bfloat16,
        ),
        "lfm2_bidirectional": Tiny(
            config(**sizes),
            lfm2_tokenizer,
            _LFM2,
            48,
            SHORT,
            cls,
            prompts={"query": "query: ", "document": "document: "},
            dtype=torch.bfloat16,
            build=Lfm2BidirectionalModel,
            settings=code,
        ),
        "lfm2_bidirectional_even": Tiny(
            config(**sizes, conv_bias=True, conv_L_cache=4),
            lfm2_tokenizer,
            _LFM2,
            48,
            SHORT,
            cls,
            dtype=torch.bfloat16,
            build=Lfm2BidirectionalModel,
            settings=code,
        ),
    }
