"""sentence-transformers' CrossEncoder: torch, float32, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from numpy.typing import NDArray


def load(folder: Path, cores: int) -> Callable[[list[list[str]], int | None], NDArray]:
    """Load a checkpoint with one torch thread per core."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(cores)
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    return lambda pairs, batch_size: model.predict(pairs, batch_size=batch_size or 32, show_progress_bar=False)
