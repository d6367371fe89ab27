"""`StaticEmbedding`, a table of token vectors without a transformer: how such a checkpoint is told and described.

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

# What this package calls the architecture, which has no model_type of its own.
STATIC = "static_embedding"
# The names of the table: sentence-transformers', and model2vec's.
TABLE_NAMES = ("embedding.weight", "embeddings")
_MODEL2VEC = "model2vec"
# Such a model has no limit; longer texts than this say nothing more by their mean.
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
    """Return what stands in for `config.json`: the sides of the table, from the header of its file.

    Raises:
        ModelNotFoundError: there is no table.
    """
    file = folder / "config.json"
    stored = read_json(file) if file.is_file() else {}
    tensors = {name: info for weights in find_weight_files(folder) for name, info in read_header(weights).items()}
    table = next((tensors[name] for name in TABLE_NAMES if name in tensors), None)
    if table is None or len(table.shape) != 2:
        raise ModelNotFoundError(
            f"{folder} is a StaticEmbedding, and its weights hold no table {' or '.join(TABLE_NAMES)}; they hold "
            f"{', '.join(sorted(tensors)[:3]) or 'nothing'}"
        )
    # A table may be shared by several tokens: then the mapping has a row for each of them.
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
