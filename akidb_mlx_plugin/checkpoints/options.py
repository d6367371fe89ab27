"""How a model is found and loaded, on its way from the configuration to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LoadOptions:
    """Everything that decides which weights are loaded, and how, apart from the model's name.

    Attributes:
        device: "auto" (the GPU where there is one), "gpu" or "cpu".
        dtype: number format of the weights, "auto", "float32", "bfloat16" or "float16"; see `load_model`.
        cache_dir: where models are kept; None: `AKIDB_MODEL_CACHE_DIR` or ~/.cache/akidb/models.
        max_cache_gb: after a download, evict the least recently used models above this.
        trusted: False if the name comes from a stored collection; see `ensure_model`.
        offline: True: never download; None: as HF_HUB_OFFLINE says.
        pooling: how token vectors become one, such as "mean" or "cls+mean"; None: as the checkpoint says.
    """

    device: str = "auto"
    dtype: str = "auto"
    cache_dir: Path | None = None
    max_cache_gb: float | None = None
    trusted: bool = True
    offline: bool | None = None
    pooling: str | Sequence[str] | None = None
