"""What every architecture shares: the encoder's interface, and how its layers are evaluated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.nn.batch import Prefix, Tokens
from akidb_mlx_plugin.nn.layout import in_cpu_layout

# Tokens from which computing a layer takes longer than waking the thread that waits for it.
_WAIT_TOKENS = 64
# What transformers' classes for a task have beside a decoder or encoder: classification, questions, language.
TASK_HEADS = ("classifier.", "lm_head.", "qa_outputs.", "score.")


class Encoder(nn.Module):
    """A transformer that turns packed tokens into token vectors.

    A subclass lives in the file named after its `model_type`, takes the checkpoint's configuration, and names its
    submodules as the checkpoint names its tensors, save for what `sanitize` renames.
    """

    hidden_size: int
    # Whether activations stay within what float16 can hold.
    float16_is_safe = True
    # Whether it casts what it looks up in an embedding table, so that the table may stay as it is stored.
    keeps_tables = True

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoder:
        """Build the encoder, weights uninitialised, for a `config.json`.

        Raises:
            ModelNotFoundError: a setting that this implementation does not cover.
        """

    @abstractmethod
    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rename a checkpoint's tensors to this encoder's names and drop those known not to be needed."""

    def prepare(self) -> None:
        """Rearrange weights for speed once they are loaded, such as splitting fused projections."""

    def check_length(self, max_tokens: int) -> None:
        """Check that texts of up to so many tokens are computed right; most architectures have no limit of their own.

        Raises:
            ModelNotFoundError: they are not; the message names the limit.
        """

    @property
    def prefix_token_bytes(self) -> int:
        """Memory that a token of a `Prefix` takes; 0 where texts cannot be computed from one.

        They can where no token sees what comes after it, and nothing of it depends on how long the text is.
        """
        return 0

    def compute_prefix(self, tokens: Tokens) -> Prefix:
        """Compute what the tokens that several texts begin with are to each layer.

        Args:
            tokens: one row, nothing padded; its arrays are evaluated when they are used.
        """
        raise NotImplementedError(f"{type(self).__name__} computes every text whole: prefix_token_bytes is 0")

    def last_vectors(self, tokens: Tokens) -> mx.array:
        """Return (N, D) vectors of each text's last token, in the order of the blocks' rows."""
        return self(tokens)[tokens.last]

    @abstractmethod
    def __call__(self, tokens: Tokens) -> mx.array:
        """Return (T, D) token vectors on the packed axis, without those of the prefix."""


def eval_layer(x: mx.array) -> mx.array:
    """Have a layer's output computed on a CPU before the next layer is described; returns it.

    MLX on a CPU lets only so many operations of all streams together wait their turn. Whoever adds more sleeps until
    there are fewer, and where two threads compute side by side one sleeps while its own stream runs dry: a fifth of
    their time. A layer at a time stays below. For the few tokens of a query waiting would cost more than it saves: its
    layers are computed while the next are described. A GPU gets the whole graph at once.
    """
    if in_cpu_layout():
        if len(x) >= _WAIT_TOKENS:
            mx.eval(x)
        else:
            mx.async_eval(x)  # type: ignore[no-untyped-call]
    return x


def split_linear(linear: nn.Module, parts: int | list[int]) -> list[nn.Module]:
    """Return linear layers for shares of a fused one's outputs, quantized like it.

    On a CPU, what works on a part of a fused output walks memory in strides, several times slower than in one piece.

    Args:
        linear: the fused layer.
        parts: how many equal shares, or the outputs at which all shares but the first begin.
    """
    shares = [copy(linear) for _ in range(parts if isinstance(parts, int) else len(parts) + 1)]
    for name in ("weight", "scales", "biases", "bias"):
        if linear.get(name) is not None:
            for share, rows in zip(shares, mx.split(linear[name], parts, axis=0), strict=True):
                share[name] = mx.contiguous(rows)
    return shares
