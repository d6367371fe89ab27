"""A kill at a random moment of each kind of work of the benchmark kills.py that no database's own test kills."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "processes"), [("download", 1), ("embed", 1), ("clean", 1)])
def test_what_is_there_is_whole_and_the_next_run_makes_the_rest(
    kind: str, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    work = importlib.import_module(f"kills_{kind}")
    tally = importlib.import_module("kills_rounds").kill_some(work, processes, 1, random.Random())
    assert tally.kills >= 1
    assert tally.faults == []


def test_a_half_file_taken_for_whole_would_be_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    embed = importlib.import_module("kills_embed")
    embed.prepare(tmp_path)
    assert embed.look(tmp_path) == "the old output"
    (tmp_path / "out.jsonl").write_text('{"id": 0, "text": "text 0 of many", "vector": [0.1]}\n')
    with pytest.raises(AssertionError, match="rows are lost"):
        embed.look(tmp_path)
