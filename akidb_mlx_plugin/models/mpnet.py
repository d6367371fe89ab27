"""MPNet: all-mpnet-base-v2, multi-qa-mpnet, paraphrase-mpnet and related models.

Source: Song et al. 2020; Hugging Face `MPNetModel`: BERT without segments, with RoBERTa's positions and a
relative position bias that all layers share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.bert import ModelArgs
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.models.roberta import RobertaEncoder
from akidb_mlx_plugin.nn.position_bias import PositionBias, relative_buckets

# Hard-coded in Hugging Face's implementation, whatever config.json says.
_BUCKETS, _PAD_ID = 32, 1
# BERT's names for the parts of its attention.
_NAMES = {
    ".attention.attn.q.": ".attention.self.query.",
    ".attention.attn.k.": ".attention.self.key.",
    ".attention.attn.v.": ".attention.self.value.",
    ".attention.attn.o.": ".attention.output.dense.",
    ".attention.LayerNorm.": ".attention.output.LayerNorm.",
}


class MPNetEncoder(RobertaEncoder):
    """The MPNet encoder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args, _PAD_ID)
        self.encoder.relative_attention_bias = nn.Embedding(_BUCKETS, args.num_attention_heads)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MPNetEncoder:
        for key, only in (("relative_attention_num_buckets", _BUCKETS), ("pad_token_id", _PAD_ID)):
            if config.get(key) not in (None, only):
                raise ModelNotFoundError(f"{key} {config[key]!r} is not supported, only {only}")
        return cls(replace(ModelArgs.from_config(config), type_vocab_size=0))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return drop_leftovers(weights, ("mpnet.",), renamed=_NAMES)

    def position_bias(self, dtype: mx.Dtype) -> PositionBias:
        table = self.encoder.relative_attention_bias
        return PositionBias(lambda distances: table(mx.array(relative_buckets(distances, _BUCKETS))).T, dtype)
