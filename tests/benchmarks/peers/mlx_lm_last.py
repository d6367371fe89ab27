"""mlx-lm's decoder as an encoder: texts sorted by length, padded on the right, the last token's state, unit length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def load(folder: Path, cores: int) -> Callable[[list[str], int | None], NDArray]:
    """Load a checkpoint of a model that mlx-lm knows."""
    import mlx.core as mx
    from mlx_lm.utils import load_model
    from tokenizers import Tokenizer

    model, _ = load_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def embed(texts: list[str], batch_size: int | None) -> NDArray:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        vectors: list[NDArray | None] = [None] * len(rows)
        step = batch_size or 8
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            longest = len(rows[chosen[0]])
            # Right of a text nothing is seen by it, the mask being causal.
            ids = mx.array([rows[i] + [0] * (longest - len(rows[i])) for i in chosen])
            last = mx.array([len(rows[i]) - 1 for i in chosen])
            states = model.model(ids)[mx.arange(len(chosen)), last]
            for i, vector in zip(chosen, np.array(states.astype(mx.float32)), strict=True):
                vectors[i] = vector / np.linalg.norm(vector)
        return np.stack(vectors)

    return embed
