"""What kills.py needs of LanceDB: a table in a folder, by handles of whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
from akidb_mlx_lancedb import MLXEmbeddings, create_table, reembed, upsert
from kills_documents import BATCH, documents, measure_database
from kills_rounds import Tally

WHAT = "LanceDB"


def make(folder: Path) -> None:
    """Write the old documents to a new table."""
    table = create_table(lancedb.connect(folder), "docs", MLXEmbeddings.create(mode="mock", dimension=8))
    upsert(table, documents("old"))


def write(folder: Path, kind: str) -> None:
    """Write the new documents in many commits, or embed the old ones again."""
    table = lancedb.connect(folder).open_table("docs")
    if kind == "upsert":
        upsert(table, documents("new"), batch_size=BATCH)
    else:
        reembed(table, MLXEmbeddings.create(mode="mock", dimension=16), name="next", batch_size=BATCH)


def read(folder: Path, name: str) -> list[tuple[str, str, str, int]]:
    """Return every row."""
    db: Any = lancedb.connect(folder)
    if name not in db.list_tables().tables:
        return []
    rows = db.open_table(name).to_arrow().to_pylist()
    return [(row["id"], row["text"], *_said(json.loads(row["metadata"]))) for row in rows]


def _said(metadata: dict[str, Any]) -> tuple[str, int]:
    return metadata["run"], metadata["n"]


def measure_all(kills: int, seed: int) -> Iterator[Tally]:
    """Kill upserts and re-embeddings, alone and beside another writer."""
    import kills_lancedb

    yield from measure_database(kills_lancedb, kills, seed)
