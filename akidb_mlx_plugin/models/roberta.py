"""RoBERTa, XLM-RoBERTa and CamemBERT: bge-m3, multilingual-e5 and related models.

Source: Liu et al. 2019; Hugging Face `RobertaModel`: BERT whose positions begin after the padding id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from akidb_mlx_plugin.models.bert import BertEncoder, ModelArgs
from akidb_mlx_plugin.nn.batch import Tokens


class RobertaEncoder(BertEncoder):
    """The RoBERTa encoder."""

    def __init__(self, args: ModelArgs, pad_id: int) -> None:
        super().__init__(args)
        self.pad_id = pad_id

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RobertaEncoder:
        pad_id = config.get("pad_token_id")
        return cls(ModelArgs.from_config(config), 1 if pad_id is None else int(pad_id))

    def position_ids(self, tokens: Tokens) -> mx.array:
        return offset_positions(tokens, self.pad_id)


def offset_positions(tokens: Tokens, pad_id: int) -> mx.array:
    """Return each token's row in a position table whose first row in use is that behind the padding id.

    A padding token within a text gets the padding id's own row and is not counted in the positions after it.

    Args:
        tokens: the batch.
        pad_id: the padding id.
    Source: Hugging Face `create_position_ids_from_input_ids`.
    """
    pads = np.asarray(tokens.ids) == pad_id
    if not pads.any():
        return tokens.positions + (pad_id + 1)
    places = np.asarray(tokens.positions)
    counts = np.cumsum(pads)
    first = np.arange(len(places)) - places
    before = counts - counts[first] + pads[first]
    ids = np.where(pads, pad_id, places - before + pad_id + 1)
    return mx.array(ids.astype(np.int32))
