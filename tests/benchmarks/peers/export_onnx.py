"""MiniLM as an ONNX file, in a folder laid out like the one Chroma downloads for its default function.

    python -m peers.export_onnx CHECKPOINT FOLDER

Needs torch, transformers and onnx; the weights are those that Chroma's own file has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from pathlib import Path

import torch
from transformers import AutoModel

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _HiddenStates(torch.nn.Module):
    """The model with its inputs by position and one output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state


def export(checkpoint: Path, folder: Path) -> None:
    """Write `model.onnx` and the files beside it that Chroma looks for.

    By the exporter that traces, which writes the graph that onnxruntime's fusions were made for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = _HiddenStates(AutoModel.from_pretrained(checkpoint, attn_implementation="eager").eval())
    ids = torch.ones(2, 16, dtype=torch.long)
    any_size = {0: "texts", 1: "tokens"}
    warnings.simplefilter("ignore")
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids), torch.zeros_like(ids)),
        str(folder / "model.onnx"),
        input_names=list(_INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys((*_INPUTS, "last_hidden_state"), any_size),
        opset_version=17,
        dynamo=False,
    )
    for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    export(options.checkpoint, options.folder)
