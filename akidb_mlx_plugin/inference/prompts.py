"""Prompts of causal models, computed once and kept as keys and values.

No token of a causal model sees what comes after it: to every layer a prompt is the same in front of any text, and a
query costs its own tokens alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from akidb_mlx_plugin.inference.packing import pack_exact
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn.batch import Prefix, Tokens

# What is kept: a model's few prompts, each no longer than an instruction with examples, together no more than this.
_MOST_PROMPTS, _MOST_TOKENS, _MOST_BYTES = 4, 1024, 256 << 20
# A prompt of a word or two costs less than what it takes to put it in front of every text in every layer.
_LEAST_TOKENS = 8
# The last letters of a prompt may become one token with the first of a text; so many tokens of it are computed anew.
_MOST_ANEW = 4
# Poolings that need no token of the prompt, and those that need none if the prompt is not to be pooled.
_WITHOUT_PROMPT, _WITHOUT_SKIPPED = {"lasttoken"}, {"lasttoken", "max", "mean", "mean_sqrt_len_tokens"}

Ids = tuple[int, ...]


class Start(NamedTuple):
    """How texts begin; those that begin alike are computed together.

    Attributes:
        prompt: token ids of what is computed once for all of them; empty if there is nothing.
        known: leading tokens of each text that are taken from there.
        skip: further leading tokens that are not pooled.
    """

    prompt: Ids
    known: int
    skip: int


class PromptStore:
    """The prompts of one loaded model. Safe for threads."""

    def __init__(self, encoder: Encoder, modes: Sequence[str], *, pool_prompt: bool) -> None:
        """Begin with none.

        Args:
            encoder: of the model.
            modes: of its pooling.
            pool_prompt: whether the prompt's tokens are pooled too.
        """
        pooled_alone = set(modes) <= (_WITHOUT_PROMPT if pool_prompt else _WITHOUT_SKIPPED)
        size = encoder.prefix_token_bytes if pooled_alone else 0
        self._pool_prompt = pool_prompt
        self._most_tokens = min(_MOST_TOKENS, _MOST_BYTES // size) if size else 0
        self._kept: OrderedDict[Ids, Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def group(self, prompts: Sequence[Ids], rows: Sequence[Sequence[int]]) -> dict[Start, list[int]]:
        """Return which rows begin alike, by their indexes.

        Args:
            prompts: for each row the tokens of its prompt alone; empty if it has none.
            rows: token ids.
        """
        shared = [self._count_shared(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        # All that share nearly the whole prompt are computed together, from what all of them share.
        least: dict[Ids, int] = {}
        for prompt, count in zip(prompts, shared, strict=True):
            if count:
                least[prompt] = min(count, least.get(prompt, count))
        groups: dict[Start, list[int]] = {}
        for i, (prompt, count) in enumerate(zip(prompts, shared, strict=True)):
            known = least[prompt] if count else 0
            start = Start(prompt if known else (), known, 0 if self._pool_prompt else len(prompt) - known)
            groups.setdefault(start, []).append(i)
        return groups

    def prefix(self, encoder: Encoder, start: Start) -> Prefix | None:
        """Return the known tokens of a start, None if there are none; call it on a worker.

        The prompt is computed unless it is kept.
        """
        if not start.known:
            return None
        # Held while it is computed: other threads want the same.
        with self._lock:
            whole = self._kept.pop(start.prompt, None) or _compute(encoder, start.prompt)
            self._kept[start.prompt] = whole
            while len(self._kept) > _MOST_PROMPTS or sum(kept.nbytes for kept in self._kept.values()) > _MOST_BYTES:
                self._kept.popitem(last=False)
        return whole.first(start.known)

    def clear(self) -> None:
        """Free what is kept."""
        with self._lock:
            self._kept.clear()

    def _count_shared(self, prompt: Ids, row: Sequence[int]) -> int:
        if not _LEAST_TOKENS <= len(prompt) <= self._most_tokens:
            return 0
        # A token is left, whose vector is pooled.
        most = min(len(prompt), len(row) - 1)
        shared = next((i for i in range(most) if prompt[i] != row[i]), most)
        return shared if shared >= len(prompt) - _MOST_ANEW else 0


def _compute(encoder: Encoder, prompt: Ids) -> Prefix:
    (batch,) = pack_exact([prompt], len(prompt))
    prefix = encoder.compute_prefix(Tokens.from_batch(batch))
    # An array that is still lazy can only be evaluated by the thread that made it.
    mx.eval(prefix.layers)
    return prefix
