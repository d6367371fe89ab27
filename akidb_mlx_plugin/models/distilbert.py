"""DistilBERT: distiluse, multi-qa-distilbert, msmarco-distilbert and related models.

Source: Sanh et al. 2019; Hugging Face `DistilBertModel`: BERT without segments, with other names of settings and
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.bert import BertEncoder, ModelArgs
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.models.settings import check_activation

# BERT's names of the same settings and parts. `sinusoidal_pos_embds` only says how the position table was made: it is
# in the checkpoint either way.
_SETTINGS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}
_NAMES = {
    "transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}


class DistilBertEncoder(BertEncoder):
    """The DistilBERT encoder."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DistilBertEncoder:
        check_activation(config, "activation", "gelu")
        missing = [theirs for theirs in _SETTINGS.values() if config.get(theirs) is None and theirs != "activation"]
        if missing:
            raise ModelNotFoundError(f"config.json lacks {', '.join(missing)}, which distilbert needs")
        # Norms use BERT's epsilon, whatever config.json says.
        settings = {name: value for name, value in config.items() if name != "layer_norm_eps"}
        settings |= {name: config.get(theirs) for name, theirs in _SETTINGS.items()}
        return cls(ModelArgs.from_config({**settings, "type_vocab_size": 0}))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return drop_leftovers(weights, ("distilbert.",), renamed=_NAMES)
