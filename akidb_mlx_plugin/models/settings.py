"""Settings that several architectures have in their `config.json`, read from every layout that is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.nn.activations import ACTIVATIONS


def take_fields(args: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are fields of a dataclass; a null counts as not set.

    Raises:
        ModelNotFoundError: one that has no default is missing.
    """
    fields = args.__dataclass_fields__
    taken = {name: config[name] for name in fields if config.get(name) is not None}
    missing = [name for name in fields if name not in taken and not hasattr(args, name)]
    if missing:
        raise ModelNotFoundError(f"config.json lacks {', '.join(missing)}, which {config.get('model_type')} needs")
    return taken


def check_activation(config: Mapping[str, Any], key: str, default: str) -> None:
    """Raise ModelNotFoundError for an activation this package does not have."""
    name = config.get(key) or default
    if name not in ACTIVATIONS:
        raise ModelNotFoundError(f"{key} {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")


def rope_settings(
    config: Mapping[str, Any], *, default_theta: float, theta_key: str = "rope_theta", layer_type: str | None = None
) -> tuple[float, float]:
    """Return base and position divisor of the rotary embedding.

    Args:
        config: it has `rope_parameters` as transformers 5 writes it, by layer type or for all, or `rope_theta` and
            `rope_scaling` beside each other, as before.
        default_theta: where the configuration names none.
        theta_key: its name in the older layout.
        layer_type: whose settings, where they differ.
    Raises:
        ModelNotFoundError: a kind of scaling other than linear.
    """
    parameters = config.get("rope_parameters") or {}
    if layer_type is not None:
        parameters = parameters.get(layer_type) or {}
    # Before there were rope_parameters, scaling was for the layers that see everything.
    scaled = layer_type in (None, "full_attention")
    scaling = parameters or (config.get("rope_scaling") if scaled else None) or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear"):
        raise ModelNotFoundError(f"rope type {kind!r} is not supported, only 'default' and 'linear'")
    theta = parameters.get("rope_theta") or config.get(theta_key) or default_theta
    return float(theta), float(scaling.get("factor") or 1.0) if kind == "linear" else 1.0


def layer_windows(layer_types: Sequence[str], window: int | None, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: None where it sees everything.

    Raises:
        ModelNotFoundError: other kinds of layers, or not as many as there are layers.
    """
    unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if unknown or len(layer_types) != layers:
        raise ModelNotFoundError(
            f"layer_types names {len(layer_types)} layers of kinds {', '.join(sorted(set(layer_types)))}; expected are "
            f"{layers}, full_attention or sliding_attention"
        )
    if window is None and "sliding_attention" in layer_types:
        raise ModelNotFoundError("config.json has sliding_attention layers but no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
