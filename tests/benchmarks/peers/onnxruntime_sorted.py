"""MiniLM on onnxruntime as one would do it with care: texts sorted by length, padded to the longest of their batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAX_TOKENS = 256


def load(folder: Path, cores: int) -> Callable[[list[str], int | None], NDArray]:
    """Load the model from a folder as `export_onnx` writes it, with one thread per core."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_TOKENS)
    tokenizer.no_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def embed(texts: list[str], batch_size: int | None) -> NDArray:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        vectors = np.empty((len(rows), 384), dtype=np.float32)
        step = batch_size or 32
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            vectors[chosen] = _forward(session, [rows[i] for i in chosen])
        return vectors

    return embed


def _forward(session: object, rows: list[list[int]]) -> NDArray:
    """Return the unit-length means of the token vectors, one row per text."""
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session.run(None, inputs)
    means = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return means / np.linalg.norm(means, axis=1, keepdims=True)
