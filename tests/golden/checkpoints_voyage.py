"""A tiny checkpoint like voyage-4-nano: Qwen 3 in both directions, with a linear layer behind its last norm."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny import GROUPED, QWEN, SHORT, Tensors, Tiny
from tiny_tokenizers import qwen3_tokenizer

_WIDTH = 40
_PROMPTS = {
    "query": "Represent the query for retrieving supporting documents: ",
    "document": "Represent the document for retrieval: ",
}


class Projected(transformers.Qwen3Model):
    """Qwen 3 whose token vectors go through a linear layer, as vLLM's `VoyageQwen3BidirectionalEmbedModel` has it."""

    def __init__(self, config: transformers.Qwen3Config) -> None:
        super().__init__(config)
        self.linear = torch.nn.Linear(config.hidden_size, _WIDTH, bias=False)

    def forward(self, *args: Any, **settings: Any) -> Any:
        output = super().forward(*args, **settings)
        output.last_hidden_state = self.linear(output.last_hidden_state)
        return output


def _publish(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    del config["is_causal"]
    config |= {
        "architectures": ["Qwen3ForCausalLM"],
        "auto_map": {"AutoModel": "modeling_qwen3_bidirectional.Qwen3BidirectionalModel"},
        "num_labels": _WIDTH,
        "use_bidirectional_attention": True,
    }
    return config, {name if "linear" in name else f"model.{name}": value for name, value in tensors.items()}


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}
    config = transformers.Qwen3Config(
        **{**GROUPED, "num_hidden_layers": 2},
        **rope,
        tie_word_embeddings=True,
        pad_token_id=0,
        max_position_embeddings=64,
        is_causal=False,
    )
    return {
        "qwen3_projected": Tiny(
            config,
            lambda: qwen3_tokenizer(ends=False),
            QWEN,
            48,
            SHORT,
            {"pooling_mode": "mean"},
            prompts=_PROMPTS,
            publish=_publish,
            build=Projected,
        )
    }
