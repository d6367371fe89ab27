"""Recognize and describe a `StaticEmbedding` checkpoint: a table of token vectors without a transformer.

Source: sentence_transformers `StaticEmbedding` and model2vec, whose files it reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.safetensors import find_weight_files, read_header
from akidb_mlx_plugin.checkpoints.sentence_transformers import Module, read_json
from akidb_mlx_plugin.errors import ModelNotFoundError

# This package's name for the architecture, which has no model_type.
STATIC = "static_embedding"
# Names of the table in sentence-transformers and in model2vec.
TABLE_NAMES = ("embedding.weight", "embeddings")
_MODEL2VEC = "model2vec"
# Such a model has no limit, but the mean of a longer text gains nothing.
_MAX_TOKENS = 1_000_000


def is_static(where: Sequence[Module] | Path) -> bool:
    """Return whether a pipeline, or a folder without one, is a table of token vectors."""
    if not isinstance(where, Path):
        return bool(where) and where[0].kind == "StaticEmbedding"
    try:
        return bool(json.loads((where / "config.json").read_text("utf-8")).get("model_type") == _MODEL2VEC)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_static_config(folder: Path) -> dict[str, Any]:
    """Return a substitute for `config.json`: the shape of the table, from the header of its file.

    Raises:
        ModelNotFoundError: there is no table.
    """
    file = folder / "config.json"
    stored = read_json(file) if file.is_file() else {}
    tensors = {name: info for weights in find_weight_files(folder) for name, info in read_header(weights).items()}
    table = next((tensors[name] for name in TABLE_NAMES if name in tensors), None)
    if table is None or len(table.shape) != 2:
        raise ModelNotFoundError(
            f"{folder} is a StaticEmbedding, but its weights hold no table {' or '.join(TABLE_NAMES)}; they hold "
            f"{', '.join(sorted(tensors)[:3]) or 'nothing'}"
        )
    # Several tokens may share a row of the table: then the mapping has an entry for each token.
    rows = tensors["mapping"].shape[0] if "mapping" in tensors else table.shape[0]
    return {
        "model_type": STATIC,
        "hidden_size": table.shape[1],
        "vocab_size": rows,
        "table_rows": table.shape[0],
        "is_mapped": "mapping" in tensors,
        "is_weighted": "weights" in tensors,
        "normalize": stored.get("normalize", True),
        "max_position_embeddings": min(int(stored.get("seq_length") or _MAX_TOKENS), _MAX_TOKENS),
    }
