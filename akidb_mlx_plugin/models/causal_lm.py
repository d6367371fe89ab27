"""Any other causal decoder, through mlx-lm's implementation of its architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import is_bidirectional
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.models.mlx_lm import implements, import_architecture, import_part
from akidb_mlx_plugin.models.mlx_lm_gaps import (
    DIFFERENT,
    check_layer_types,
    check_rope,
    ignored_window,
    with_flat_rope,
)
from akidb_mlx_plugin.nn.batch import Tokens, join_blocks
from akidb_mlx_plugin.nn.compiled import without_kernels
from akidb_mlx_plugin.runtime.default_device import evaluate

__all__ = ["CausalEncoder", "implements"]

# Names in mlx-lm's models for the decoder below their language model head.
_BODIES = ("model", "backbone", "transformer")
# Longer texts are computed in chunks with a key-value cache, as in generation, so that scores stay small.
_CHUNK = 1024


class CausalEncoder(Encoder):
    """An mlx-lm model without its language model head."""

    keeps_tables = False

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.hidden_size = int(config["hidden_size"])
        self.float16_is_safe = not config["model_type"].startswith("gemma")
        self.model = model
        self._model_type = config["model_type"]
        self._window = ignored_window(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CausalEncoder:
        model_type = str(config["model_type"])
        if is_bidirectional(config):
            raise ModelNotFoundError(f"this {model_type} is bidirectional, but mlx-lm's implementation is causal")
        if model_type in DIFFERENT:
            raise ModelNotFoundError(
                f"{model_type} is not supported: mlx-lm's gives different vectors from transformers'"
            )
        module = import_architecture(model_type)
        if module is None:
            raise ModelNotFoundError(f"the installed mlx-lm has no architecture {model_type!r}")
        try:
            args = module.ModelArgs.from_dict(with_flat_rope(config, module.ModelArgs.__dataclass_fields__))
            check_layer_types(config, args)
            model = module.Model(args)
        # mlx-lm asserts what it expects of a configuration.
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
            reason = str(error) or repr(error)
            raise ModelNotFoundError(f"mlx-lm's {model_type} cannot be built from config.json: {reason}") from error
        if not any(callable(model.get(name)) for name in _BODIES):
            raise ModelNotFoundError(f"mlx-lm's {model_type} has no decoder separate from its language model head")
        check_rope(config, model)
        return cls(model, config)

    def check_length(self, max_tokens: int) -> None:
        if self._window is not None and max_tokens > self._window:
            raise ModelNotFoundError(
                f"this {self._model_type} has a sliding_window of {self._window} tokens, which mlx-lm ignores, so that "
                f"texts of up to {max_tokens} tokens would get wrong vectors; set max_seq_length in "
                f"sentence_bert_config.json to {self._window} or less"
            )

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # Checkpoints saved without a head have no prefix.
        if not any(name.startswith(tuple(f"{body}." for body in _BODIES)) for name in weights):
            weights = {f"{self._body_name}.{name}": value for name, value in weights.items()}
        if hasattr(self.model, "sanitize"):
            weights = self.model.sanitize(weights)
        self.model.pop("lm_head", None)
        return {f"model.{name}": value for name, value in weights.items() if not name.startswith("lm_head.")}

    def prepare(self) -> None:
        # Such as frequencies of scaled rotary positions. A lazy array can be evaluated only by the thread that made it;
        # not being parameters, these would still be lazy when the first text arrives on another thread.
        evaluate(list(hidden_arrays(self.model)))

    @property
    def _body_name(self) -> str:
        return next(name for name in _BODIES if callable(self.model.get(name)))

    def __call__(self, tokens: Tokens) -> mx.array:
        body = self.model[self._body_name]
        outputs = []
        with without_kernels():
            for block in tokens.blocks:
                # (T,) -> (B, L); with right padding and a causal mask no real token sees padding.
                ids = tokens.ids[block.start : block.stop].reshape(block.rows, block.length)
                outputs.append(self._run(body, ids).reshape(block.rows * block.length, -1))
        return join_blocks(outputs, len(tokens.ids))

    def _run(self, body: nn.Module, ids: mx.array) -> mx.array:
        if ids.shape[1] <= _CHUNK:
            return body(ids, cache=None)
        caches = import_part("cache")
        assert caches is not None
        cache = caches.make_prompt_cache(self.model)
        pieces = []
        for start in range(0, ids.shape[1], _CHUNK):
            pieces.append(body(ids[:, start : start + _CHUNK], cache=cache))
            # Chunk by chunk, or the scores of all of them would be in memory at once.
            evaluate(pieces[-1])
        return mx.concatenate(pieces, axis=1)


def hidden_arrays(model: nn.Module) -> Iterator[mx.array]:
    """Yield every array in a model that is not one of its parameters.

    These are arrays in attributes that begin with an underscore, of a module or of other objects in it.
    """
    seen: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(model, False)]
    while waiting:
        value, hidden = waiting.pop()
        if isinstance(value, mx.array):
            if hidden:
                yield value
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            waiting += [(part, name.startswith("_")) for name, part in value.items()]
            waiting += [(part, True) for part in vars(value).values()]
        elif isinstance(value, Mapping):
            waiting += [(part, hidden) for part in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(part, hidden) for part in value]
        elif type(value).__module__.startswith("mlx_lm.") and hasattr(value, "__dict__"):
            waiting += [(part, True) for part in vars(value).values()]
