"""`akidb-mlx bench mac`: complete on any machine, and plain about which one it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_reports import read_report
from golden_models import GOLDEN
from typer.testing import CliRunner

from akidb_mlx_plugin.benchmarks import mac
from akidb_mlx_plugin.cli.bench import app
from akidb_mlx_plugin.runtime import devices
from akidb_mlx_plugin.runtime.devices import AppleGPU


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(f"text number {i} about {'this and ' * (i % 7)}that" for i in range(80)))
    return file


def run(folder: Path, corpus: Path, *arguments: str) -> str:
    arguments = ("mac", "--corpus", str(corpus), "--output", str(folder), "--seconds", "0.3", *arguments)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.mark.slow
def test_a_model_from_loading_to_throughput(tmp_path: Path, corpus: Path) -> None:
    output = run(tmp_path / "out", corpus, "--model", str(GOLDEN / "bert" / "model"), "--device", "cpu")
    report = read_report(tmp_path / "out", "mac")
    rows = {row["what"]: row for row in report["results"]}
    assert len(report["results"]) == 11
    assert all(row["value"] is not None and row["derived"] is None for row in report["results"])
    assert rows["queries not answered"]["value"] == 0
    assert {row["unit"] for row in report["results"]} == {"s", "TFLOP/s", "ms", "", "tokens/s", "texts/s", "MB"}
    assert report["summary"]["model"]["dtype"] == "float32"
    assert report["summary"]["is_mac"] == mac.is_apple_silicon()
    assert report["machine"]["processor"] in report["summary"]["machine"]
    assert report["summary"]["machine"].split(",")[0] in output
    assert ("not a Mac" in output) != mac.is_apple_silicon()
    assert len(report["raw"]["load_ms"]) > 5
    assert (tmp_path / "out" / "mac.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("model", "gpu", "expected"),
    [
        ("qwen3-0.6b-4bit", AppleGPU(14, "g"), (10.0, 35.0, 3_000.0)),
        ("qwen3-0.6b-4bit", AppleGPU(16, "g"), (None, None, None)),
        ("minilm-l6-v2", AppleGPU(14, "g"), (None, None, None)),
        ("qwen3-0.6b-4bit", None, (None, None, None)),
    ],
)
def test_derived_figures_are_of_their_chip_and_model(
    monkeypatch: pytest.MonkeyPatch, model: str, gpu: AppleGPU | None, expected: tuple[float | None, ...]
) -> None:
    monkeypatch.setattr(devices, "find_apple_gpu", lambda: gpu)
    assert mac._derived(model) == expected


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mac, "_measure_bulk", interrupt)
    arguments = ["mac", "--corpus", str(corpus), "--output", str(tmp_path), "--seconds", "0.3", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    report = read_report(tmp_path, "mac")
    assert report["interrupted"]
    assert len(report["results"]) == 8
    assert json.loads(result.stdout) == report["results"]
