"""What Chroma embeds with where nothing else is chosen: MiniLM on onnxruntime, every text padded to 256 tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def load(folder: Path, cores: int) -> Callable[[list[str], int | None], list]:
    """Load the model from a folder as `export_onnx` writes it, in place of the one Chroma would download."""
    from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

    function = ONNXMiniLM_L6_V2()
    function.DOWNLOAD_PATH = folder.parent
    function(["warm up"])
    return lambda texts, batch_size: function(texts)
