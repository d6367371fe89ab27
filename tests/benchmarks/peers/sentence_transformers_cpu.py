"""sentence-transformers: torch, float32, on the CPU, with the prompt that the model has for documents, if any."""

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

    def embed(texts: list[str], batch_size: int | None) -> NDArray:
        return model.encode_document(
            texts, batch_size=batch_size or 32, show_progress_bar=False, normalize_embeddings=True
        )

    return embed
