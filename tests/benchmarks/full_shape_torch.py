"""The vectors of `full_shape.py` beside those of torch, on the same dequantized weights.

Run it in an environment with torch and transformers, after `full_shape.py NAME FOLDER` in one with this package:

    python tests/benchmarks/full_shape_torch.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer


def dequantize(weight: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the float32 matrix of MLX's affine quantization, lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    values = (weight.to(torch.int64)[..., None] >> shifts) & ((1 << bits) - 1)
    groups = values.reshape(weight.shape[0], scales.shape[1], -1).float()
    return (groups * scales.float()[..., None] + biases.float()[..., None]).reshape(weight.shape[0], -1)


def read_weights(folder: Path, bits: int) -> dict[str, torch.Tensor]:
    """Return all tensors in float32, by their names without prefix."""
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name, value in tensors.items():
        path = name.removesuffix(".weight")
        if f"{path}.scales" in tensors and name.endswith(".weight"):
            value = dequantize(value, tensors[f"{path}.scales"], tensors[f"{path}.biases"], bits)
        elif name.endswith((".scales", ".biases")):
            continue
        weights[name.removeprefix("model.")] = value.float()
    return weights


@torch.no_grad()
def main(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = read_weights(folder, config.pop("quantization")["bits"])
    config.pop("quantization_config")
    if "rope_local_base_freq" in config:
        config["rope_parameters"] = {
            "full_attention": {"rope_type": "default", "rope_theta": config.pop("rope_theta")},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")},
        }
    else:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    dense = [weights.pop(f"dense.{i}.weight") for i in range(2) if f"dense.{i}.weight" in weights]
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config)).eval()
    model.load_state_dict(weights)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = np.load(folder / "vectors.npy")
    for text, vector in zip((folder / "texts.txt").read_text().split("\n"), expected, strict=True):
        ids = tokenizer.encode(text).ids
        hidden = model(torch.tensor([ids])).last_hidden_state[0]
        pooled = hidden.mean(dim=0) if dense else hidden[-1]
        for weight in dense:
            pooled = weight @ pooled
        pooled = torch.nn.functional.normalize(pooled, dim=0).numpy()
        print(f"{len(ids)} tokens: difference {np.abs(pooled - vector).max():.1e}, cosine {pooled @ vector:.7f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
