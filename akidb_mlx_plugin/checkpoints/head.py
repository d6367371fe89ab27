"""A checkpoint's layers after pooling: dense layers, with their weights in folders or in the model's own files.

They include a linear layer applied to the tokens before pooling: without a bias, and with any pooling except max, it
gives the same result after pooling, for one vector per text instead of one per token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.safetensors import TensorInfo, find_weight_files, read_header
from akidb_mlx_plugin.checkpoints.schemas import DenseSettings, validate
from akidb_mlx_plugin.checkpoints.sentence_transformers import Module
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import find_architecture, projection_of

# sentence-transformers' default, if the settings name none.
_DEFAULT_ACTIVATION = "tanh"
_INSIDE = re.compile(r"dense\.\d+\.weight")
# Pooling modes that commute with a linear layer without a bias.
_LINEAR_POOLINGS = {"cls", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"}


@dataclass(frozen=True)
class DenseLayer:
    """A `Dense` module after pooling.

    Attributes:
        folder: folder of its weights; None if they are in the model's own files.
        in_features, out_features: input and output size.
        bias: whether it has one.
        activation: last part of the torch class name in lower case, such as "identity" or "tanh".
        residual: whether its input is added to its output.
        normalize_input: whether its input is scaled to unit length.
        prefix: prefix of its tensors in the model's own files, such as "dense.0".
        norm: prefix of the layer norm after its activation, in the same files; "" for none.
        norm_eps: epsilon of that norm.
        norm_bias: whether that norm has a bias.
        rows: rows of the matrix at `prefix` that it consists of, for a language model's answer; the matrix itself stays
            with the encoder. Empty for all rows.
    """

    folder: Path | None
    in_features: int
    out_features: int
    bias: bool = False
    activation: str = "identity"
    residual: bool = False
    normalize_input: bool = False
    prefix: str = ""
    norm: str = ""
    norm_eps: float = 1e-5
    norm_bias: bool = True
    rows: tuple[int, ...] = ()

    @property
    def own_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the tensors in the model's own files that belong to it alone."""
        return () if self.rows else tuple(f"{name}." for name in (self.prefix, self.norm) if name)


def read_head(
    place: Path, modules: Sequence[Module], config: Mapping[str, Any], pooling: Sequence[str]
) -> tuple[DenseLayer, ...]:
    """Return the dense layers of a checkpoint, in order.

    Args:
        place: folder of the encoder.
        modules: the pipeline; empty for a bare checkpoint.
        config: `config.json`.
        pooling: its modes.
    Raises:
        ModelNotFoundError: a layer does not give its sizes, does not fit the one before, or has no weights.
    """
    stored = stored_inside(place)
    width = int(config["hidden_size"]) * len(pooling)
    projection = _read_projection(place, config, stored, pooling)
    if projection:
        width = projection[0].out_features
    return (*projection, *_read_dense(place, modules, stored, width))


def is_in_head(name: str, layers: Iterable[DenseLayer]) -> bool:
    """Return whether a tensor of the model's own files belongs to a dense layer rather than to the encoder."""
    return name.startswith(("dense.", *(prefix for layer in layers for prefix in layer.own_prefixes)))


def _read_projection(
    place: Path, config: Mapping[str, Any], stored: Mapping[str, TensorInfo], pooling: Sequence[str]
) -> tuple[DenseLayer, ...]:
    """Return the linear layer at the end of the encoder, if any: from its tensor, else from the settings."""
    described = projection_of(config)
    name = find_architecture(str(config["model_type"])).projection
    weight = stored.get(f"{name}.weight")
    if name is None or (weight is None and described is None):
        return ()
    if weight is None and stored:
        raise ModelNotFoundError(f"{place} lacks the tensor {name}.weight, the last layer of the model")
    if not set(pooling) <= _LINEAR_POOLINGS or len(pooling) > 1:
        raise ModelNotFoundError(
            f"{place} ends with a linear layer ({name}.weight), which this package supports with one pooling mode of "
            f"{', '.join(sorted(_LINEAR_POOLINGS))}, not {'+'.join(pooling)}"
        )
    width = described if weight is None else weight.shape[0]
    return (DenseLayer(None, int(config["hidden_size"]), int(width or 0), prefix=name),)


def _read_dense(
    place: Path, modules: Sequence[Module], stored: Mapping[str, TensorInfo], width: int
) -> tuple[DenseLayer, ...]:
    """Return the layers of `Dense` modules, including those in the model's own files."""
    modules = [module for module in modules if module.kind in ("Dense", "Normalize")]
    described = [module for module in modules if module.kind == "Dense"]
    count = len([name for name in stored if _INSIDE.fullmatch(name)])
    missing = [module.folder.name for module in described[count:] if module.settings is None]
    if missing and stored:
        raise ModelNotFoundError(
            f"{place} lacks the folder {missing[0]} that its modules.json names, and its weights hold no dense.N.* "
            "instead; download the model again with all its folders"
        )
    layers = []
    for i in range(max(count, len(described) - len(missing))):
        layer = _describe(described[i] if i < len(described) else None, stored if i < count else None, i, width)
        if layer.in_features != width:
            raise ModelNotFoundError(
                f"dense layer {i} of {place} takes vectors of {layer.in_features} components, but its input has {width}"
            )
        layers.append(layer)
        width = layer.out_features
    return tuple(_with_norms(layers, modules))


def _describe(module: Module | None, stored: Mapping[str, TensorInfo] | None, i: int, width: int) -> DenseLayer:
    """Return one layer: settings from its module, and sizes from its weights if they are in the model's own files."""
    layer = DenseLayer(None, width, 0) if module is None or module.settings is None else _read_layer(module)
    if stored is None:
        return layer
    weight = stored.get(f"dense.{i}.weight")
    if weight is None or len(weight.shape) != 2:
        inside = sorted(name for name in stored if _INSIDE.fullmatch(name))
        raise ModelNotFoundError(
            f"the weights hold the dense layers {', '.join(inside)}, but no matrix dense.{i}.weight"
        )
    return replace(
        layer,
        folder=None,
        in_features=width,
        out_features=weight.shape[0],
        bias=f"dense.{i}.bias" in stored,
        prefix=f"dense.{i}",
    )


def _read_layer(module: Module) -> DenseLayer:
    settings = validate(DenseSettings, module.settings or {}, module.folder / "config.json")
    return DenseLayer(
        module.folder,
        settings.in_features,
        settings.out_features,
        bias=settings.bias,
        activation=(settings.activation_function or _DEFAULT_ACTIVATION).rpartition(".")[2].lower(),
        residual=bool(settings.use_residual),
    )


def _with_norms(layers: Sequence[DenseLayer], modules: Sequence[Module]) -> list[DenseLayer]:
    """Mark the layers that follow a Normalize; one after the last layer is the checkpoint's `normalize`."""
    result = list(layers)
    i = 0
    for before, module in zip([None, *modules], modules, strict=False):
        if module.kind == "Dense":
            result[i] = replace(result[i], normalize_input=before is not None and before.kind == "Normalize")
            i += 1
    return result


def stored_inside(place: Path) -> Mapping[str, TensorInfo]:
    """Return the tensors of the model's own files; empty before the weights are downloaded."""
    if not any(place.rglob("*.safetensors")):
        return {}
    return {name: info for file in find_weight_files(place) for name, info in read_header(file).items()}
