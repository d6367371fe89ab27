"""Ministral 3: Nemotron-3-Embed and related embedders.

Source: Hugging Face `Ministral3Model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.llama import LlamaEncoder
from akidb_mlx_plugin.models.mistral import MistralEncoder
from akidb_mlx_plugin.models.settings import optional_count

# transformers' default where config.json has no rotary settings.
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


class Ministral3Encoder(MistralEncoder):
    """Mistral with queries scaled by position, as in Llama 4."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262_144,
    }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LlamaEncoder:
        given = config.get("rope_parameters") or config.get("rope_scaling")
        return super().from_config(config if given else {**config, "rope_parameters": _ROPE})

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        rope = config.get("rope_scaling") or config["rope_parameters"]
        beta = rope.get("llama_4_scaling_beta")
        length = optional_count(rope, "original_max_position_embeddings")
        if isinstance(beta, bool) or not isinstance(beta, int | float) or length is None:
            raise ModelNotFoundError(
                "ministral3 needs the numbers llama_4_scaling_beta and original_max_position_embeddings in "
                f"rope_parameters, got {beta!r} and {length!r}"
            )
        return super().variant(config) | {"query_growth": (float(beta), float(length))}
