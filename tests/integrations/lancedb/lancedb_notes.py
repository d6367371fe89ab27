"""Notes as LanceDB's documentation embeds them."""

from typing import Any

import lancedb
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import DOCUMENTS, SETTINGS
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

FIELDS = {("name" if key == "model" else key): value for key, value in SETTINGS.items()}
ROWS = [{"key": key, "text": text} for key, text in DOCUMENTS.items()]


def make(**settings: Any) -> MLXEmbeddings:
    """Make a function as LanceDB's documentation does."""
    made = get_registry().get("akidb-mlx").create(**settings)
    assert isinstance(made, MLXEmbeddings)
    return made


def note_of(function: MLXEmbeddings) -> type[LanceModel]:
    """Return the schema of a table whose texts the function embeds."""

    class Note(LanceModel):
        key: str
        text: str | None = function.SourceField(default=None)
        vector: Vector(function.ndims()) | None = function.VectorField(default=None)  # type: ignore[valid-type]

    return Note


def nearest(table: lancedb.table.Table, text: str, **arguments: Any) -> str:
    """Return the key of the note closest to a text."""
    return str(table.search(text, **arguments).limit(1).to_list()[0]["key"])
