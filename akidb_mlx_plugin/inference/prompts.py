"""Cache the prompts of causal models as keys and values.

In a causal model no token sees later ones: in every layer a prompt is the same before any text, so that a query costs
only its own tokens.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from akidb_mlx_plugin.inference.packing import pack_exact
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn.batch import Prefix, Tokens
from akidb_mlx_plugin.runtime.default_device import evaluate, given_back

# Limits of the cache: a model has few prompts, each no longer than an instruction with examples.
_MOST_PROMPTS, _MOST_TOKENS, _MOST_BYTES = 4, 1024, 256 << 20
# A prompt of a word or two costs less than prepending its keys and values to every text in every layer.
_LEAST_TOKENS = 8
# The end of a prompt may merge into one token with the beginning of a text; up to this many tokens are recomputed.
_MOST_ANEW = 4
# Pooling modes that never need the prompt's tokens, and those that do not if the prompt is not pooled.
_WITHOUT_PROMPT, _WITHOUT_SKIPPED = {"lasttoken"}, {"lasttoken", "max", "mean", "mean_sqrt_len_tokens"}

Ids = tuple[int, ...]


class Start(NamedTuple):
    """How texts begin; texts with equal starts are computed together.

    Attributes:
        prompt: token ids of the cached prompt; empty for none.
        known: leading tokens of each text that come from the cache.
        skip: further leading tokens that are not pooled.
    """

    prompt: Ids
    known: int
    skip: int


class PromptStore:
    """Cached prompts of one loaded model. Thread-safe."""

    def __init__(self, encoder: Encoder, modes: Sequence[str], *, pool_prompt: bool) -> None:
        """Create an empty cache.

        Args:
            encoder: the model's encoder.
            modes: its pooling modes.
            pool_prompt: whether the prompt's tokens are pooled too.
        """
        pooled_alone = set(modes) <= (_WITHOUT_PROMPT if pool_prompt else _WITHOUT_SKIPPED)
        size = encoder.prefix_token_bytes if pooled_alone else 0
        self._pool_prompt = pool_prompt
        self._most_tokens = min(_MOST_TOKENS, _MOST_BYTES // size) if size else 0
        self._kept: OrderedDict[Ids, Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def group(self, prompts: Sequence[Ids], rows: Sequence[Sequence[int]]) -> dict[Start, list[int]]:
        """Group the indices of rows by how they start.

        Args:
            prompts: token ids of each row's prompt; empty for none.
            rows: token ids.
        """
        shared = [self._count_shared(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        # Rows that share nearly the whole prompt are computed together, from the tokens that all of them share.
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
        """Return the cached tokens of a start, computed if needed; None if there are none. Call it on a worker."""
        if not start.known:
            return None
        # Held during the computation: other threads want the same prompt.
        with given_back():
            self._lock.acquire()
        try:
            whole = self._kept.pop(start.prompt, None) or _compute(encoder, start.prompt)
            self._kept[start.prompt] = whole
            while len(self._kept) > _MOST_PROMPTS or sum(kept.nbytes for kept in self._kept.values()) > _MOST_BYTES:
                self._kept.popitem(last=False)
        finally:
            self._lock.release()
        return whole.first(start.known)

    def clear(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._kept.clear()

    def _count_shared(self, prompt: Ids, row: Sequence[int]) -> int:
        if not _LEAST_TOKENS <= len(prompt) <= self._most_tokens:
            return 0
        # At least one token remains to be pooled.
        most = min(len(prompt), len(row) - 1)
        shared = next((i for i in range(most) if prompt[i] != row[i]), most)
        return shared if shared >= len(prompt) - _MOST_ANEW else 0


def _compute(encoder: Encoder, prompt: Ids) -> Prefix:
    (batch,) = pack_exact([prompt], len(prompt))
    prefix = encoder.compute_prefix(Tokens.from_batch(batch))
    # A lazy array can be evaluated only by the thread that made it.
    evaluate(prefix.layers)
    return prefix
