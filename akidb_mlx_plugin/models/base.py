"""What all architectures share: the encoder's interface, and how its layers are evaluated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.nn.batch import Pick, Prefix, Tokens, take
from akidb_mlx_plugin.nn.layout import in_cpu_layout
from akidb_mlx_plugin.runtime.default_device import evaluate, start_evaluating

Layer = TypeVar("Layer", bound=nn.Module)

# From this many tokens on, computing a layer takes longer than waking the thread that waits for it.
_WAIT_TOKENS = 64
# Heads of transformers' classes for classification, question answering and language modeling.
TASK_HEADS = ("classifier.", "lm_head.", "qa_outputs.", "score.")


class Encoder(nn.Module):
    """A transformer that turns packed tokens into token vectors.

    A subclass is in the file named after its `model_type`, takes the checkpoint's configuration, and names its
    submodules after the checkpoint's tensors, except for those that `sanitize` renames.
    """

    hidden_size: int
    # Whether activations stay within the range of float16.
    float16_is_safe = True
    # Whether it casts the rows it looks up in an embedding table, so that the table may keep its stored dtype.
    keeps_tables = True

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoder:
        """Build the encoder for a `config.json`, with uninitialized weights.

        Raises:
            ModelNotFoundError: a setting that this implementation does not support.
        """

    @abstractmethod
    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rename a checkpoint's tensors to this encoder's names and drop those known to be unneeded."""

    def prepare(self) -> None:
        """Rearrange loaded weights for speed, such as by splitting fused projections."""

    def check_length(self, max_tokens: int) -> None:
        """Check that texts of up to `max_tokens` are computed correctly; most architectures have no limit.

        Raises:
            ModelNotFoundError: they are not; the message names the limit.
        """

    @property
    def prefix_token_bytes(self) -> int:
        """Bytes that a token of a `Prefix` takes; 0 if the encoder does not support a prefix.

        It can if no token sees a later one, and no keys or values depend on the length of the text.
        """
        return 0

    def compute_prefix(self, tokens: Tokens) -> Prefix:
        """Compute each layer's keys and values of the tokens that several texts begin with.

        Args:
            tokens: one row without padding; its arrays are evaluated when they are used.
        """
        raise NotImplementedError(f"{type(self).__name__} does not support a prefix: prefix_token_bytes is 0")

    def picked_vectors(self, tokens: Tokens, pick: Pick) -> mx.array:
        """Return (N, D) vectors of one token of each text, in the order of the blocks' rows."""
        return take(self(tokens), pick)

    @abstractmethod
    def __call__(self, tokens: Tokens) -> mx.array:
        """Return (T, D) token vectors on the packed axis, excluding the prefix."""


class PickingEncoder(Encoder):
    """An encoder whose last layer can compute one token of each text only, which saves most of that layer."""

    def __call__(self, tokens: Tokens) -> mx.array:
        return self.encode(tokens, None)

    def picked_vectors(self, tokens: Tokens, pick: Pick) -> mx.array:
        return self.encode(tokens, pick)

    @abstractmethod
    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        """Return (T, D) token vectors, or (N, D) of the picked tokens only."""


def with_pick(layers: Sequence[Layer], pick: Pick | None) -> Iterator[tuple[Layer, Pick | None]]:
    """Yield each layer with the tokens it computes only; None for all, as in every layer but the last."""
    for i, layer in enumerate(layers):
        yield layer, pick if i == len(layers) - 1 else None


def eval_layer(x: mx.array) -> mx.array:
    """Evaluate a layer's output on a CPU before the next layer's graph is built; returns it.

    On a CPU, MLX limits the operations that all streams together may have queued. A thread that adds more sleeps until
    there are fewer, so that with two threads one sleeps while its own stream runs dry: a fifth of their time. One layer
    at a time stays below the limit. For the few tokens of a query, waiting would cost more than it saves: its layers
    are computed while the next are built. A GPU gets the whole graph at once.
    """
    if in_cpu_layout():
        if len(x) >= _WAIT_TOKENS:
            evaluate(x)
        else:
            start_evaluating(x)
    return x


def split_linear(linear: nn.Module, parts: int | list[int]) -> list[nn.Module]:
    """Split a fused linear layer by its outputs, keeping its quantization.

    On a CPU, reading a part of a fused output means strided access, several times slower than contiguous.

    Args:
        linear: the fused layer.
        parts: number of equal parts, or the outputs at which all parts but the first begin.
    """
    shares = [copy(linear) for _ in range(parts if isinstance(parts, int) else len(parts) + 1)]
    for name in ("weight", "scales", "biases", "bias"):
        if linear.get(name) is not None:
            for share, rows in zip(shares, mx.split(linear[name], parts, axis=0), strict=True):
                share[name] = mx.contiguous(rows)
    return shares
