"""Datasets for the tests of the Ray stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from akidb_mlx_ray.pipeline import BulkStore

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.benchmarks.corpus import all_docstrings

TEXTS = [text for text, _ in zip(all_docstrings(), range(300), strict=False)]


MOCK = {"mode": "mock", "dimension": 8}


def corpus(count: int = len(TEXTS)) -> Any:
    rows = pa.table({"id": [f"d{i}" for i in range(count)], "text": TEXTS[:count], "year": list(range(count))})
    return ray.data.from_arrow(rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class AtOnce:
    """Rows that stages are applied to here and now, as often as in one worker."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def map_batches(self, stage: Any, *, fn_kwargs: dict[str, Any], **_: Any) -> AtOnce:
        return AtOnce(stage(self.rows, **fn_kwargs))

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        yield self.rows


def find_missing(store: BulkStore, ids: list[str]) -> list[str]:
    found: Any = store.drop_present(AtOnce(pa.table({"id": ids})))  # type: ignore[arg-type]
    return found.rows["id"].to_pylist()


def assert_same_vectors(ids: list[str], vectors: Any, service: EmbeddingService) -> None:
    wanted = service.embed_batch([TEXTS[int(id_[1:])] for id_ in ids]).embeddings
    assert (np.asarray(vectors, dtype=np.float32) * wanted).sum(axis=1).min() > 0.99999
