"""The benchmarks: that they account for everything and write what they say; never how fast anything is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_reports import read_report
from local_server import mock_config, serving
from typer.testing import CliRunner

from akidb_mlx_plugin.benchmarks.drift import Sample
from akidb_mlx_plugin.benchmarks.report import PLOT_REMEDY
from akidb_mlx_plugin.benchmarks.subject import limit_cores
from akidb_mlx_plugin.cli.bench import app
from akidb_mlx_plugin.cli.bench_options import collect
from akidb_mlx_plugin.errors import InvalidInputError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(f"text number {i} about {'this and ' * (i % 7)}that" for i in range(80)))
    return file


@pytest.fixture
def mock_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")


def run(folder: Path, corpus: Path, *arguments: str, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--corpus", str(corpus), "--output", str(folder)])
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    return result


@pytest.mark.usefixtures("mock_mode")
class TestCommands:
    @pytest.mark.slow
    def test_throughput(self, tmp_path: Path, corpus: Path) -> None:
        result = run(tmp_path / "out", corpus, "throughput", "--texts", "10,100", "--runs", "2", "--json")
        report = read_report(tmp_path / "out", "throughput")
        assert json.loads(result.stdout) == report["results"]
        assert [row["texts"] for row in report["results"]] == [10, 100]
        assert len(report["raw"]["runs"]) == 4
        assert report["settings"]["runs"] == 2

    @pytest.mark.slow
    def test_latency(self, tmp_path: Path, corpus: Path) -> None:
        run(tmp_path, corpus, "latency", "--tokens", "4,9", "--repeats", "7")
        report = read_report(tmp_path, "latency")
        assert [(row["tokens"], row["way"]) for row in report["results"]] == [
            (4, "direct"),
            (4, "queued"),
            (9, "direct"),
            (9, "queued"),
        ]
        assert all(len(run["direct_ms"]) == len(run["queued_ms"]) == 7 for run in report["raw"]["lengths"])

    @pytest.mark.slow
    @pytest.mark.parametrize("arrivals", ["uniform", "poisson"])
    def test_load(self, tmp_path: Path, corpus: Path, arrivals: str) -> None:
        run(tmp_path, corpus, "load", "--qps", "100", "--seconds", "0.5", "--arrivals", arrivals)
        report = read_report(tmp_path, "load")
        (row,) = report["results"]
        assert row["sent"] == row["answered"] == len(report["raw"]["latency_ms"]) == len(report["raw"]["lag_ms"])
        assert row["failed"] == row["unanswered"] == 0
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["worst_ms"]
        assert 0 < row["memory_start_mb"] <= row["memory_peak_mb"]

    @pytest.mark.slow
    def test_soak(self, tmp_path: Path, corpus: Path) -> None:
        # Whether this process is steady for these seconds is not the question here: other tests ran in it before.
        CliRunner().invoke(
            app, ["soak", "--minutes", "0.04", "--corpus", str(corpus), "--output", str(tmp_path), "--json"]
        )
        report = read_report(tmp_path, "soak")
        assert len(report["raw"]["samples"]) >= 3
        assert report["summary"]["failures"] == {}
        assert {"query", "small batch", "cancelled"} <= set(report["summary"]["requests"])
        assert {"settled_bytes", "final_bytes", "memory_drift", "violations"} <= set(report["summary"])

    @pytest.mark.slow
    def test_soak_fails_where_something_grows(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[Any] = []

        def leak(at_s: float) -> Sample:
            opened.append(None)
            return Sample(at_s, 1000, 5, len(opened))

        monkeypatch.setattr("akidb_mlx_plugin.benchmarks.soak.take_sample", leak)
        result = run(tmp_path, corpus, "soak", "--minutes", "0.05", exit_code=1)
        assert "file descriptors gained" in result.stderr
        assert read_report(tmp_path, "soak")["summary"]["violations"]

    @pytest.mark.slow
    def test_tune(self, tmp_path: Path, corpus: Path) -> None:
        pairs = ("--batch-sizes", "1,10", "--timeouts-ms", "0,25")
        result = run(tmp_path, corpus, "tune", "--qps", "50", "--seconds", "0.3", "--bulk", "20", *pairs)
        report = read_report(tmp_path, "tune")
        tried = [(row["batch_size"], row["batch_timeout_ms"]) for row in report["results"]]
        assert tried == [(1, 0), (1, 25), (10, 0), (10, 25)]
        recommended = report["summary"]["recommended"]
        assert (recommended["batch_size"], recommended["batch_timeout_ms"]) in tried
        assert "recommended: batch_size" in result.stderr

    @pytest.mark.slow
    def test_a_picture_is_drawn(self, tmp_path: Path, corpus: Path) -> None:
        pytest.importorskip("matplotlib")
        run(tmp_path, corpus, "load", "--seconds", "0.2")
        run(tmp_path, corpus, "throughput", "--texts", "10", "--runs", "1")
        for name in ("load", "throughput"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_without_matplotlib_there_is_everything_else(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
            monkeypatch.setitem(sys.modules, name, None)
        result = run(tmp_path, corpus, "throughput", "--texts", "10", "--runs", "1")
        assert PLOT_REMEDY in result.stderr
        assert [file.name for file in tmp_path.glob("throughput*")] == ["throughput.json"]

    @pytest.mark.parametrize("sizes", ["10,x", "", "0"])
    def test_numbers_that_are_none_are_refused(self, tmp_path: Path, corpus: Path, sizes: str) -> None:
        result = run(tmp_path, corpus, "throughput", "--texts", sizes, exit_code=2)
        assert "--texts" in result.output

    def test_every_command_has_an_example(self) -> None:
        for name in ("throughput", "latency", "load", "soak", "tune"):
            assert f"Example: akidb-mlx bench {name}" in " ".join(
                CliRunner().invoke(app, [name, "--help"]).output.split()
            )


@pytest.mark.slow
def test_load_on_the_real_model_answers_everything(tmp_path: Path, corpus: Path, minilm_dir: Path) -> None:
    run(tmp_path, corpus, "load", "--qps", "20", "--seconds", "3", "--model", str(minilm_dir), "--batch-size", "4")
    report = read_report(tmp_path, "load")
    assert report["results"][0]["answered"] == 60
    assert report["settings"]["batch_size"] == 4
    assert report["machine"]["device"] in ("cpu", "gpu")


def test_an_interrupt_ends_a_measurement_with_what_there_is() -> None:
    def results() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyboardInterrupt

    assert collect(results(), 5) == ([1, 2], True)


@pytest.mark.parametrize(
    ("command", "module", "name"),
    [(["load", "--seconds", "60"], "load", "OpenLoop.run"), (["soak", "--minutes", "1"], "soak", "Traffic.start")],
)
@pytest.mark.slow
def test_ctrl_c_writes_the_results_and_exits_130(
    tmp_path: Path, corpus: Path, command: list[str], module: str, name: str
) -> None:
    program = f"""
import akidb_mlx_plugin.benchmarks.{module} as module
original = module.{name}
def announce(self):
    print("under way", flush=True)
    return original(self)
module.{name} = announce
from akidb_mlx_plugin.cli.bench import app
app()
"""
    arguments = [*command, "--corpus", str(corpus), "--output", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "AKIDB_EMBEDDING__MODE": "mock"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    report = read_report(tmp_path, command[0])
    assert report["interrupted"]
    assert report["raw"]


def test_cores_are_limited_for_the_thread_that_asks() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("not on this system")
    found: list[set[int]] = []

    def limit() -> None:
        limit_cores(1)
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=limit)
    thread.start()
    thread.join()
    assert len(found[0]) == 1
    with pytest.raises(InvalidInputError, match="threads must be 1 to"):
        limit_cores(100_000)


@pytest.mark.slow
def test_the_commands_import_nothing_heavy() -> None:
    program = (
        "import sys, akidb_mlx_plugin.cli.bench; "
        "print([m for m in ('mlx.core', 'matplotlib', 'akidb_mlx_plugin.benchmarks') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.slow
def test_load_on_a_server(tmp_path: Path, corpus: Path) -> None:
    with serving(mock_config()) as server:
        load = ["load", "--qps", "50", "--seconds", "0.4", "--model", "mock", "--url", server.url]
        run(tmp_path, corpus, *load)
        (row,) = read_report(tmp_path, "load")["results"]
        assert (row["sent"], row["answered"]) == (20, 20)
        assert row["memory_end_mb"] > 0
        assert server.requests.count("/v1/embeddings") >= 20
        run(tmp_path, corpus, *load, "--batch-size", "5", exit_code=2)
