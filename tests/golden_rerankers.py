"""The tiny rerankers of tests/golden/rerankers and their reference scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from golden_models import GOLDEN

from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.inference.reranker import Reranker
from akidb_mlx_plugin.nn.layout import emulate_gpu
from akidb_mlx_plugin.types import PairRequest, Vector

RERANKERS = GOLDEN / "rerankers"
NAMES = sorted(folder.name for folder in RERANKERS.iterdir() if (folder / "model").is_dir())


def reranker_dir(name: str = "bert") -> Path:
    """Return a tiny reranker's checkpoint folder."""
    return RERANKERS / name / "model"


def read_pairs(name: str) -> tuple[list[list[str]], Vector]:
    """Return the pairs of a tiny reranker and sentence-transformers' scores, (N,) or (N, K)."""
    pairs = json.loads((RERANKERS / name / "pairs.json").read_text(encoding="utf-8"))
    with np.load(RERANKERS / name / "scores.npz") as arrays:
        return pairs, arrays["scores"]


@contextmanager
def opened(folder: Path, *, gpu: bool = False, dtype: str = "float32", **settings: Any) -> Iterator[Reranker]:
    """Load a reranker on the CPU, in its own layout or a GPU's."""
    with emulate_gpu() if gpu else nullcontext():
        reranker = Reranker.open(folder, LoadOptions(device="cpu", dtype=dtype), **settings)
        try:
            yield reranker
        finally:
            reranker.close()


def score(reranker: Reranker, pairs: list[list[str]]) -> Vector:
    """Return (N,) or (N, K) scores of pairs, as one request."""
    request = PairRequest([text for _, text in pairs], queries=[query for query, _ in pairs])
    scores = reranker.score_requests([request])[0].embeddings
    return scores[:, 0] if scores.shape[1] == 1 else scores


def copy_reranker(name: str, folder: Path, **changes: Any) -> Path:
    """Copy a tiny reranker, with changes to its config.json; None removes a setting."""
    target = Path(shutil.copytree(reranker_dir(name), folder / f"copy-{name}"))
    edit_json(target / "config.json", **changes)
    return target


def edit_json(file: Path, **changes: Any) -> None:
    """Change settings in a JSON file, which need not exist; None removes one."""
    value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    value = {key: setting for key, setting in {**value, **changes}.items() if setting is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
