"""sentence-transformers, texts embedded as queries: with the model's prompt for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from numpy.typing import NDArray


def load(folder: Path, cores: int) -> Callable[[list[str], int | None], NDArray]:
    """Load a checkpoint with one torch thread per core."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(cores)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})
    if not model.prompts.get("query"):
        raise ValueError(f"{folder} has no prompt for queries")
    return lambda texts, _: model.encode_query(texts, show_progress_bar=False, normalize_embeddings=True)
