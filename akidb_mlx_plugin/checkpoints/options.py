"""How a model is found and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LoadOptions:
    """Everything but the model's name that decides which weights are loaded, and how.

    Attributes:
        device: "auto" (the GPU if there is one), "gpu" or "cpu".
        dtype: of the weights: "auto", "float32", "bfloat16" or "float16"; see `load_model`.
        cache_dir: where models are kept. Defaults to `AKIDB_MODEL_CACHE_DIR`, else ~/.cache/akidb/models.
        max_cache_gb: after a download, evict the least recently used models above this size.
        trusted: False if the name comes from a stored collection; see `ensure_model`.
        offline: True to never download. Defaults to HF_HUB_OFFLINE.
        pooling: how token vectors become one, such as "mean" or "cls+mean". Defaults to the checkpoint's.
    """

    device: str = "auto"
    dtype: str = "auto"
    cache_dir: Path | None = None
    max_cache_gb: float | None = None
    trusted: bool = True
    offline: bool | None = None
    pooling: str | Sequence[str] | None = None
