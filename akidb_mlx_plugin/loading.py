"""A checkpoint's tensors into an encoder: strict, in the number format the device computes best in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from akidb_mlx_plugin.checkpoint import Checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models import ARCHITECTURES, encoder_class
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.pooling import check_modes

_DENSE_ACTIVATIONS = {"identity": None, "tanh": mx.tanh, "relu": nn.relu, "gelu": nn.gelu, "sigmoid": mx.sigmoid}


@dataclass(frozen=True)
class LoadedModel:
    """Weights in memory, ready to compute.

    Attributes:
        encoder: token ids to token vectors.
        dense: layers behind the pooling, with their activations inside.
        parameters: number of weights.
        dtype: number format they are in.
    """

    encoder: Encoder
    dense: tuple[nn.Module, ...]
    parameters: int
    dtype: str


def load_model(checkpoint: Checkpoint) -> LoadedModel:
    """Load a checkpoint on this thread's default device.

    Raises:
        ModelNotFoundError: unsupported architecture or setting, a damaged file, a tensor missing or left over.
    """
    check_modes(checkpoint.pooling)
    architecture = encoder_class(checkpoint.model_type)
    if architecture is None:
        raise ModelNotFoundError(
            f"{checkpoint.folder} is of architecture {checkpoint.model_type!r}; "
            f"supported are {', '.join(sorted(ARCHITECTURES))}"
        )
    encoder = architecture.from_config(checkpoint.config)
    weights: dict[str, mx.array] = {}
    for file in checkpoint.weight_files:
        weights.update(_read_tensors(file))
    load_strictly(encoder, encoder.sanitize(weights), checkpoint.folder)
    encoder.set_dtype(mx.float32)
    parameters = sum(value.size for _, value in tree_flatten(encoder.parameters()))
    encoder.prepare()
    encoder.eval()
    dense = tuple(_load_dense(checkpoint, i) for i in range(len(checkpoint.dense)))
    # Evaluated here and now: an array that is still lazy can only be evaluated by the thread that made it.
    mx.eval(encoder.parameters(), [layer.parameters() for layer in dense])
    return LoadedModel(encoder, dense, parameters, "float32")


def load_strictly(module: nn.Module, weights: dict[str, mx.array], folder: Path) -> None:
    """Put tensors into a module.

    Raises:
        ModelNotFoundError: one is missing, left over, or of another shape; it is named.
    """
    wanted = dict(tree_flatten(module.parameters()))
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    problems = [f"{word} {_some(names)}" for word, names in (("is missing", missing), ("has an unknown", extra)) if names]
    problems += [
        f"has {name} of shape {weights[name].shape} where {wanted[name].shape} is expected"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ][:3]
    if problems:
        raise ModelNotFoundError(f"{folder} does not fit its config.json: it {'; it '.join(problems)}")
    module.load_weights(list(weights.items()))


def _read_tensors(file: Path) -> dict[str, mx.array]:
    try:
        tensors = mx.load(str(file))
        mx.eval(tensors)
    except (RuntimeError, ValueError) as error:
        raise ModelNotFoundError(
            f"{file} is damaged or no safetensors file ({error}); fetch the model again: "
            "akidb-mlx models download --force"
        ) from error
    return dict(tensors)


def _load_dense(checkpoint: Checkpoint, index: int) -> nn.Module:
    spec = checkpoint.dense[index]
    assert spec.folder is not None
    if spec.activation not in _DENSE_ACTIVATIONS:
        raise ModelNotFoundError(
            f"{spec.folder} has the activation {spec.activation!r}; supported are {', '.join(_DENSE_ACTIVATIONS)}"
        )
    linear = nn.Linear(spec.in_features, spec.out_features, bias=spec.bias)
    weights = {k.removeprefix("linear."): v for k, v in _read_tensors(spec.folder / "model.safetensors").items()}
    load_strictly(linear, weights, spec.folder)
    linear.set_dtype(mx.float32)
    activation = _DENSE_ACTIVATIONS[spec.activation]
    return nn.Sequential(linear, activation) if activation else linear


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"
