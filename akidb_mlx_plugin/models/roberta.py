"""RoBERTa, XLM-RoBERTa and CamemBERT: bge-m3, multilingual-e5 and kin.

Source: Liu et al. 2019; Hugging Face `RobertaModel`: BERT whose positions begin behind the padding id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from akidb_mlx_plugin.models.bert import Args, BertEncoder


class RobertaEncoder(BertEncoder):
    """The RoBERTa encoder."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RobertaEncoder:
        pad_id = config.get("pad_token_id")
        return cls(replace(Args.from_config(config), first_position=(1 if pad_id is None else int(pad_id)) + 1))
