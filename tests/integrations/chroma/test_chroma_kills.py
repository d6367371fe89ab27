"""SIGKILL at random moments of upserts and re-embeddings in Chroma: each document once, whole, none lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_helpers import PATIENCE_S

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills_chroma.py"


@pytest.mark.slow
@pytest.mark.parametrize(("place", "processes", "kills"), [("folder", 1, 3), ("server", 2, 2)])
def test_nothing_is_lost_doubled_or_mixed(place: str, processes: int, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--kills", str(kills), "--only", place, "--json"],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tallies = json.loads(done.stdout)
    assert [tally["faults"] for tally in tallies] == [[], []]
    assert all(tally["kills"] >= kills and tally["processes"] == processes for tally in tallies)
