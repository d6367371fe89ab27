"""Real texts of mixed lengths and scripts, as many tokens of them as one has the time for."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

from akidb_mlx_plugin.benchmarks.corpus import all_docstrings
from akidb_mlx_plugin.inference.fidelity import SAMPLE_TEXTS

_TESTED = Path(__file__).parents[1] / "golden" / "minilm_texts.json.gz"
# Docstrings to choose from; joined by a blank line where a text is to be longer than they are.
_POOL = 4000
_SHORT = 16
# EmbeddingGemma's tokenizer has this token, its table no row for it: it is to be read as ordinary characters.
_WITHOUT_ROW = "Describe <image_soft_token> in one sentence."
# Standard deviation of the logarithm of lengths.
_SPREAD = 1.5

CountTokens = Callable[[Sequence[str]], Sequence[int]]


def mixed_texts(count: int, longest: int, tokens: int, count_tokens: CountTokens, seed: int = 0) -> list[str]:
    """Return texts of one to `longest` tokens, short ones in the majority.

    Args:
        count: how many, in random order.
        longest: tokens of the longest.
        tokens: of all together, about.
        count_tokens: how many tokens each of some texts has, without truncation.
        seed: the same one gives the same texts.
    """
    tested = json.loads(gzip.decompress(_TESTED.read_bytes()))
    odd = [*SAMPLE_TEXTS, _WITHOUT_ROW, *(text for text in tested if not text.isascii() or len(text) <= _SHORT)]
    texts = list(dict.fromkeys(odd))[:count]
    rng = random.Random(seed)
    pool = [text for text in all_docstrings() if text not in odd]
    rng.shuffle(pool)
    pool = pool[:_POOL]
    left = tokens - sum(count_tokens(texts))
    texts += _of_lengths(_spread(count - len(texts), longest, left), pool, count_tokens(pool))
    rng.shuffle(texts)
    return texts


def _spread(count: int, longest: int, total: int) -> list[int]:
    """Return lengths from one to `longest` whose sum is about `total`, the longest first.

    They are distributed as those of texts are, about log-normally, and end in `longest`.
    """
    normal = NormalDist(sigma=_SPREAD)
    ratios = np.exp([normal.inv_cdf((i + 0.5) / count) for i in range(count)])[::-1]
    low, high = 1e-3, float(longest)
    for _ in range(40):
        median = (low + high) / 2
        lengths = np.clip(median * ratios, 1, longest)
        lengths[0] = longest
        if lengths.sum() < total:
            low = median
        else:
            high = median
    return [round(length) for length in lengths]


def _of_lengths(lengths: Sequence[int], pool: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return a text of about each length: docstrings that no other has, several of them for the long ones."""
    unused = sorted(zip(counts, pool, strict=True))
    texts = []
    for wanted in lengths:
        parts: list[str] = []
        while wanted > 0 and unused:
            # The longest that is not longer, or else the shortest.
            place = max(0, int(np.searchsorted([count for count, _ in unused], wanted, side="right")) - 1)
            count, text = unused[place]
            if parts and count > wanted:
                break
            del unused[place]
            parts.append(text)
            wanted -= count
        texts.append("\n\n".join(parts))
    return texts
