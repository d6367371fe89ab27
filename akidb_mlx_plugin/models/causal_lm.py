"""Any other causal decoder, computed by mlx-lm's own implementation of its architecture.

mlx-lm is an optional dependency, imported when a checkpoint needs it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection, Mapping
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn.batch import Tokens

REMEDY = 'pip install "akidb-mlx-plugin[lm]"'
# Architectures that mlx-lm computes by the module of another, as its `utils.MODEL_REMAPPING`.
_SAME_AS = {
    "mistral": "llama",
    "iquestcoder": "llama",
    "xverse": "llama",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "kimi_k2": "deepseek_v3",
    "minimax_m2": "minimax",
}
# Loads without an error and computes something else: cosine 0.96 against transformers with mlx-lm 0.32.
_DIFFERENT = {"glm"}
# Names that mlx-lm's models give to what lies below their language model head.
_BODIES = ("model", "backbone", "transformer")
# Longer texts go in pieces with a cache of keys and values, as in generation, so that scores stay small.
_PIECE = 1024
_NAME = re.compile(r"[\w-]+")
_import_lock = Lock()


def implements(model_type: str) -> bool:
    """Tell whether the installed mlx-lm has an architecture.

    Raises:
        ModelNotFoundError: mlx-lm is not installed, so that nobody can tell.
    """
    return _import_architecture(model_type) is not None


class CausalEncoder(Encoder):
    """An mlx-lm model without its language model head."""

    keeps_tables = False

    def __init__(self, model: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.model = model

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CausalEncoder:
        model_type = str(config["model_type"])
        if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
            raise ModelNotFoundError(
                f"this {model_type} attends in both directions, and mlx-lm's implementation only backwards"
            )
        if model_type in _DIFFERENT:
            raise ModelNotFoundError(
                f"mlx-lm's {model_type} gives other vectors than transformers; it is not supported"
            )
        module = _import_architecture(model_type)
        if module is None:
            raise ModelNotFoundError(f"the installed mlx-lm has no architecture {model_type!r}")
        try:
            known = module.ModelArgs.__dataclass_fields__
            model = module.Model(module.ModelArgs.from_dict(_with_flat_rope(config, known)))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelNotFoundError(f"mlx-lm's {model_type} cannot be built from config.json: {error}") from error
        if not any(callable(model.get(name)) for name in _BODIES):
            raise ModelNotFoundError(f"mlx-lm's {model_type} has no body apart from its language model head")
        encoder = cls(model, int(config["hidden_size"]))
        encoder.float16_is_safe = not model_type.startswith("gemma")
        return encoder

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # Checkpoints saved without a head have no prefix either.
        if not any(name.startswith(tuple(f"{body}." for body in _BODIES)) for name in weights):
            weights = {f"{self._body_name}.{name}": value for name, value in weights.items()}
        if hasattr(self.model, "sanitize"):
            weights = self.model.sanitize(weights)
        self.model.pop("lm_head", None)
        return {f"model.{name}": value for name, value in weights.items() if not name.startswith("lm_head.")}

    @property
    def _body_name(self) -> str:
        return next(name for name in _BODIES if callable(self.model.get(name)))

    def __call__(self, tokens: Tokens) -> mx.array:
        body = self.model[self._body_name]
        outputs = []
        for block in tokens.blocks:
            # (T,) -> (B, L); with right padding and a causal mask no real token sees padding.
            ids = tokens.ids[block.start : block.stop].reshape(block.rows, block.length)
            outputs.append(self._run(body, ids).reshape(block.rows * block.length, -1))
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)

    def _run(self, body: nn.Module, ids: mx.array) -> mx.array:
        if ids.shape[1] <= _PIECE:
            return body(ids, cache=None)
        caches = _import_part("cache")
        assert caches is not None
        cache = caches.make_prompt_cache(self.model)
        pieces = []
        for start in range(0, ids.shape[1], _PIECE):
            pieces.append(body(ids[:, start : start + _PIECE], cache=cache))
            # Piece by piece, or the scores of all of them would be in memory together.
            mx.eval(pieces[-1])
        return mx.concatenate(pieces, axis=1)


def _with_flat_rope(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the configuration with `rope_parameters`, transformers 5's layout, also in the one before it.

    Args:
        config: `config.json`.
        known: settings that mlx-lm's architecture reads.
    Raises:
        ModelNotFoundError: there are parameters by layer type, which it would not see.
    """
    rope = config.get("rope_parameters") or {}
    if "rope_parameters" in known or not rope:
        return dict(config)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelNotFoundError(f"rope_parameters by layer type are not read by mlx-lm's {config['model_type']}")
    scaling = {"rope_scaling": dict(rope)} if rope.get("rope_type", "default") != "default" else {}
    return {**scaling, **rope, **config}


def _import_architecture(model_type: str) -> ModuleType | None:
    """Import mlx-lm's module for an architecture; None if it has none."""
    # It comes from a file that may be a stranger's.
    if not _NAME.fullmatch(model_type):
        return None
    module = _import_part(_SAME_AS.get(model_type, model_type))
    return module if hasattr(module, "Model") and hasattr(module, "ModelArgs") else None


def _import_part(part: str) -> ModuleType | None:
    """Import one module of `mlx_lm.models`, without the rest of mlx-lm; None if there is no such module.

    Importing `mlx_lm` itself takes seconds, for it imports transformers, and lowers the process's limit of open files
    for good. Its architectures need neither, so the package is stood in for while one of them is imported.
    """
    with _import_lock:
        package = importlib.util.find_spec("mlx_lm")
        if package is None or package.submodule_search_locations is None:
            raise ModelNotFoundError(
                f"architecture {part!r} is not one of this package's own, and mlx-lm, which may have it, is not "
                f"installed: {REMEDY}"
            )
        stand_in = "mlx_lm" not in sys.modules
        if stand_in:
            sys.modules["mlx_lm"] = module = ModuleType("mlx_lm")
            module.__path__ = list(package.submodule_search_locations)
        try:
            name = f"mlx_lm.models.{part}"
            return import_module(name) if importlib.util.find_spec(name) else None
        except (ImportError, SystemExit) as error:  # one of its modules exits where something it needs is missing
            raise ModelNotFoundError(f"mlx-lm's {part} cannot be imported: {error}") from error
        finally:
            if stand_in:
                del sys.modules["mlx_lm"]
