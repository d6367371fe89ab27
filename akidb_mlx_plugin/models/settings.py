"""Read `config.json` settings that several architectures share, in every layout in use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import is_bidirectional
from akidb_mlx_plugin.nn.activations import ACTIVATIONS
from akidb_mlx_plugin.nn.rope_scaling import RopeScaling, RopeSettings

_LARGEST = 2**31


def take_fields(args: type[Any], config: Mapping[str, Any], **computed: Any) -> dict[str, Any]:
    """Return the settings that are fields of a dataclass; null counts as not set.

    Args:
        args: the dataclass.
        config: `config.json`.
        computed: fields that are not taken directly from `config.json`.
    Raises:
        ModelNotFoundError: one without a default is missing, or one has the wrong type; it is named.
    """
    fields = args.__dataclass_fields__
    taken = {name: config[name] for name in fields if name not in computed and config.get(name) is not None}
    for name, value in taken.items():
        _check_type(name, value, fields[name].type)
    taken |= computed
    missing = [name for name in fields if name not in taken and not hasattr(args, name)]
    if missing:
        raise ModelNotFoundError(f"config.json lacks {', '.join(missing)}, which {config.get('model_type')} needs")
    return taken


def _check_type(name: str, value: Any, annotation: str) -> None:
    """Check a setting against the annotation of its field, such as "int | None"."""
    match annotation.partition(" | ")[0]:
        case "int":
            expected, fits = "an integer", type(value) is int and 0 <= value < _LARGEST
        case "float":
            expected, fits = "a finite number", type(value) in (int, float) and abs(value) < math.inf
        case "bool":
            expected, fits = "true or false", isinstance(value, bool)
        case "str":
            expected, fits = "a text", isinstance(value, str)
        case _:
            return
    if not fits:
        raise ModelNotFoundError(f"{name} in config.json must be {expected}, got {value!r}")


def optional_count(config: Mapping[str, Any], key: str, *, least: int = 1) -> int | None:
    """Return a count, or None if it is not set.

    Raises:
        ModelNotFoundError: not a number, or less than `least`.
    """
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 2**53:
        raise ModelNotFoundError(f"{key} in config.json must be a number of at least {least}, got {value!r}")
    return int(value)


def take_count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a count; null counts as not set.

    Raises:
        ModelNotFoundError: it is missing and has no default, or is not a positive number.
    """
    value = optional_count(config, key) or default
    if value is None:
        raise ModelNotFoundError(f"config.json lacks {key}, which {config.get('model_type')} needs")
    return value


def check_activation(config: Mapping[str, Any], key: str, default: str) -> None:
    """Raise ModelNotFoundError for an unsupported activation."""
    name = config.get(key) or default
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ModelNotFoundError(f"{key} {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")


def rope_settings(
    config: Mapping[str, Any],
    *,
    size: int,
    default_theta: float,
    theta_key: str = "rope_theta",
    layer_type: str | None = None,
    scaled: bool = True,
) -> RopeSettings:
    """Return the rotary settings.

    Args:
        config: has `rope_parameters` as in transformers 5, by layer type or for all layers, or `rope_theta` and
            `rope_scaling`, as before.
        size: rotated channels of a head.
        default_theta: default of the base.
        theta_key: name of the base in the older layout.
        layer_type: kind of layer, where settings differ.
        scaled: whether a `rope_scaling` in the older layout also applies to these layers.
    Raises:
        ModelNotFoundError: an unsupported kind of scaling, or one that lacks a parameter.
    """
    parameters = _mapping(config, "rope_parameters")
    if layer_type is not None:
        parameters = _mapping(parameters, layer_type)
    older = _mapping(config, "rope_scaling") if scaled else {}
    # As in transformers, the older setting wins where a file has both.
    parameters = {**parameters, **older} if layer_type is not None else older or parameters
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta") or config.get(theta_key) or default_theta
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise ModelNotFoundError(f"{theta_key} in config.json must be a positive number, got {theta!r}")
    positions = optional_count(config, "max_position_embeddings")
    # Phi 3 has it next to the parameters.
    original = optional_count(config, "original_max_position_embeddings") if layer_type is None else None
    original = original or optional_count(parameters, "original_max_position_embeddings") or positions
    return RopeScaling(str(kind), parameters, size, float(theta), positions, original).settings()


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ModelNotFoundError(f"{key} in config.json must be an object, got {value!r}")
    return value


def rotated_share(config: Mapping[str, Any]) -> float:
    """Return the fraction of each head's channels that is rotated, in either layout.

    Raises:
        ModelNotFoundError: not a fraction.
    """
    given = _mapping(config, "rope_scaling") or _mapping(config, "rope_parameters")
    share = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ModelNotFoundError(f"partial_rotary_factor in config.json must be above 0 and at most 1, got {share!r}")
    return float(share)


def attention_window(config: Mapping[str, Any], window: int | None) -> int | None:
    """Return a causal or bidirectional decoder's sliding window as `attend` expects it.

    With `is_causal` false, transformers' mask reaches that many positions to each side; a causal window includes the
    token itself.

    Args:
        config: `config.json`.
        window: its `sliding_window`; None for none.
    Raises:
        ModelNotFoundError: it is bidirectional by another setting, for which there is no reference.
    """
    if window is None or not is_bidirectional(config):
        return window
    if config.get("is_causal") is not False:
        raise ModelNotFoundError(
            f"config.json has a sliding_window of {window} in a bidirectional {config.get('model_type')}, which is "
            "supported only with is_causal false"
        )
    return window + 1


def layer_windows(layer_types: Sequence[str], window: int | None, layers: int) -> tuple[int | None, ...]:
    """Return each layer's sliding window; None for full attention.

    Raises:
        ModelNotFoundError: unknown kinds of layers, or not one kind per layer.
    """
    kinds = [str(kind) for kind in layer_types] if isinstance(layer_types, list | tuple) else []
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise ModelNotFoundError(
            f"layer_types names {len(kinds)} layers of kinds {', '.join(sorted(set(kinds)))}; expected are {layers}, "
            "full_attention or sliding_attention"
        )
    if window is None and "sliding_attention" in layer_types:
        raise ModelNotFoundError("config.json has sliding_attention layers but no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
