"""ELECTRA.

Source: Clark et al. 2020; Hugging Face `ElectraModel`: BERT whose embeddings may be narrower than its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.models import bert
from akidb_mlx_plugin.models.bert import BertEncoder, Embeddings
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.nn.batch import Pick, Tokens


@dataclass(frozen=True)
class ModelArgs(bert.ModelArgs):
    """The model's settings, named as in `config.json`."""

    embedding_size: int = 128


class ElectraEncoder(BertEncoder):
    """The ELECTRA encoder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.embeddings = Embeddings(replace(args, hidden_size=args.embedding_size))
        if args.embedding_size != args.hidden_size:
            self.embeddings_project = nn.Linear(args.embedding_size, args.hidden_size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ElectraEncoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return drop_leftovers(weights, ("electra.",))

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        x = self.embeddings(tokens.ids, self.position_ids(tokens), tokens.segments)
        if "embeddings_project" in self:
            x = self.embeddings_project(x)
        return self.encoder(x, tokens.blocks, pick=pick)
