"""The benchmarks: that they account for everything and write what they say; never how fast anything is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_reports import read_report


@pytest.fixture
def compare_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


class TestCompare:
    @pytest.mark.usefixtures("compare_folder")
    def test_ratios_are_of_neighbours_and_bars_know_which_way_is_good(self) -> None:
        from bars import Bar, Outcome
        from pairs import Ratio

        ratio = Ratio.of([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])
        assert ratio == Ratio(3.0, 2.0, 4.0)
        faster, below = Bar("a", "speed", 3, 4), Bar("b", "time", 10, 4, "s")
        assert (faster.met_by(3.0), faster.met_by(2.9)) == (True, False)
        assert (below.met_by(9.9), below.met_by(10.0)) == (True, False)
        assert Bar("c", "shown only").met_by(1.0) is None
        row = Outcome(faster, figure=ratio).row()
        assert (row["result"], row["met"]) == ("3.00x (2.00 to 4.00)", "yes")
        assert Outcome(faster, note="no peer").row()["result"] == "not measured"

    @pytest.mark.slow
    @pytest.mark.usefixtures("compare_folder")
    def test_a_contender_runs_in_its_own_process(self, tmp_path: Path, minilm_dir: Path) -> None:
        import numpy as np
        from contenders import Contender, PeerMissingError, Worker
        from pairs import alternate, least_cosine, median_seconds, total_seconds

        texts = tmp_path / "texts.json"
        texts.write_text(json.dumps(["one", "two words", "three small words"]))
        with Worker(Contender("akidb-mlx", "ours", minilm_dir), sys.executable, 1) as worker:
            together = worker.embed(texts, save=tmp_path / "together.npy")
            worker.embed(texts, apart=True, save=tmp_path / "apart.npy")
            rounds = list(alternate({"ours": worker}, texts, rounds=2, apart=True))
        assert len(together.seconds) == 1
        assert together.peak_bytes > 1e6
        assert [len(timings["ours"].seconds) for timings in rounds] == [3, 3]
        assert all(
            a > b > 0 for a, b in zip(total_seconds(rounds, "ours"), median_seconds(rounds, "ours"), strict=True)
        )
        assert np.load(tmp_path / "together.npy").shape == (3, 384)
        assert least_cosine(tmp_path / "together.npy", tmp_path / "apart.npy") > 0.99999
        with pytest.raises(PeerMissingError, match=r"someone: ModuleNotFoundError.*peers\.absent"):
            Worker(Contender("someone", "absent", tmp_path), sys.executable, 1)

    @pytest.mark.slow
    def test_prints_a_table_and_writes_it(self, tmp_path: Path, compare_folder: Path) -> None:
        pytest.importorskip("chromadb")
        command = [sys.executable, str(compare_folder / "compare.py"), "--only", "import", "--quick"]
        result = subprocess.run(
            [*command, "--output", str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        machine, _, header, _, row = result.stdout.splitlines()
        assert machine.startswith("Measured on ")
        assert header.startswith("| what | ours | peer | result | bar | met |")
        assert "import akidb_mlx_chroma" in row
        report = read_report(tmp_path, "compare")
        assert len(report["raw"]["import"]["beyond_s"]) == 2
