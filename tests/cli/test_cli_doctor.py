"""The doctor: its checks, and a remedy for every problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.runtime.blas import Blas


def findings(expected_status: int) -> dict[str, dict[str, str]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == expected_status, result.output
    return {row["check"]: row for row in json.loads(result.stdout)}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def any_speed_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not cause a finding here."""
    monkeypatch.setattr("akidb_mlx_plugin.cli.doctor._SLOW_GFLOPS", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_hub")
def test_tells_versions_device_speed_cache_and_hub(minilm_dir: Path) -> None:
    found = findings(0)
    assert found["mlx"]["found"][0].isdigit()
    assert "cores" in found["device"]["found"]
    assert float(found["matrix products"]["found"].split()[0]) > 0
    assert "all-MiniLM-L6-v2" in found["models present"]["found"]
    assert "not reachable" in found["hub"]["found"]
    assert "HF_ENDPOINT" in found["hub"]["remedy"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_hub")
def test_a_missing_blas_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akidb_mlx_plugin.runtime.blas.load_blas", lambda: Blas("reference"))
    monkeypatch.setattr("akidb_mlx_plugin.runtime.devices.choose_device", lambda device: "cpu")
    assert "pip install scipy-openblas32" in findings(1)["BLAS"]["remedy"]


@pytest.mark.slow
def test_offline_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline" in findings(0)["hub"]["found"]
