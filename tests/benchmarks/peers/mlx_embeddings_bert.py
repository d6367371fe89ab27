"""mlx-embeddings' BERT, called as its `generate` calls it: each batch in the order given, padded to its longest."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

_MAX_TOKENS = 256


def load(folder: Path, cores: int) -> Callable[[list[str], int | None], NDArray]:
    """Load a MiniLM checkpoint into its model class."""
    import mlx.core as mx
    from tokenizers import Tokenizer

    bert = _import_model("bert")
    model = bert.Model(bert.ModelArgs.from_dict(json.loads((folder / "config.json").read_text())))
    weights = mx.load(str(folder / "model.safetensors"))
    model.load_weights(list(model.sanitize(weights).items()))
    model.eval()
    mx.eval(model.parameters())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_TOKENS)
    tokenizer.enable_padding()

    def embed(texts: list[str], batch_size: int | None) -> NDArray:
        vectors = []
        step = batch_size or 32
        for start in range(0, len(texts), step):
            encodings = tokenizer.encode_batch(texts[start : start + step])
            ids = mx.array([encoding.ids for encoding in encodings])
            mask = mx.array([encoding.attention_mask for encoding in encodings])
            vectors.append(np.array(model(ids, attention_mask=mask).text_embeds))
        return np.concatenate(vectors)

    return embed


def _import_model(name: str) -> ModuleType:
    """Import one model of the package without the package's own `__init__`, which needs half of mlx-vlm."""
    spec = importlib.util.find_spec("mlx_embeddings")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("mlx-embeddings is not installed")
    package = ModuleType("mlx_embeddings")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["mlx_embeddings"] = package
    models = ModuleType("mlx_embeddings.models")
    models.__path__ = [f"{package.__path__[0]}/models"]
    sys.modules["mlx_embeddings.models"] = models
    return importlib.import_module(f"mlx_embeddings.models.{name}")
