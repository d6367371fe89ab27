"""StaticEmbedding: a table of token vectors, averaged by pooling; model2vec's potion and related models.

Source: sentence_transformers `StaticEmbedding`, an embedding bag over tokens without special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn.batch import Tokens


class StaticEncoder(Encoder):
    """The table; in model2vec's files, tokens may share a row, and each may have a weight."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.hidden_size = config["hidden_size"]
        self.embedding = nn.Embedding(config["table_rows"], config["hidden_size"])
        if config["is_mapped"]:
            self.mapping = mx.zeros(config["vocab_size"], dtype=mx.int64)
        if config["is_weighted"]:
            self.weights = mx.zeros(config["vocab_size"])

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StaticEncoder:
        return cls(config)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        clean = {("embedding.weight" if name == "embeddings" else name): value for name, value in weights.items()}
        if "mapping" in clean:
            clean["mapping"] = clean["mapping"].astype(mx.int64)
        return clean

    def prepare(self) -> None:
        # A missing row would be read out of bounds.
        rows = self.embedding.weight.shape[0]
        if "mapping" in self and not bool(mx.all((self.mapping >= 0) & (self.mapping < rows))):
            raise ModelNotFoundError(f"the tensor 'mapping' has entries outside the table's {rows} rows")

    def __call__(self, tokens: Tokens) -> mx.array:
        rows = self.mapping[tokens.ids] if "mapping" in self else tokens.ids
        vectors = self.embedding(rows).astype(mx.float32)
        return vectors * self.weights[tokens.ids][:, None] if "weights" in self else vectors
