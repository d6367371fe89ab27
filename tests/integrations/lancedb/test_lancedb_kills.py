"""A few kills at random moments of the benchmark kills.py, with LanceDB."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "writers", "earliest"),
    [("upsert", 1, 0.0), ("upsert", 1, 0.5), ("upsert", 2, 0.2), ("reembed", 1, 0.2), ("reembed", 2, 0.2)],
)
def test_every_document_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, writers: int, earliest: float
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    host = importlib.import_module("kills_lancedb")
    kills = importlib.import_module("kills")
    kills.run_round(host, tmp_path, kind, writers=writers, share=random.uniform(earliest, earliest + 0.5))
