"""`akidb-mlx config show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from akidb_mlx_plugin.cli.config import app
from akidb_mlx_plugin.errors import InvalidInputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("embedding: {mode: mock, mlx: {query_prompt: 'query: ', normalize: null}}", encoding="utf-8")
    return path


def test_every_key_with_its_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__BATCH_SIZE", "32")
    result = CliRunner().invoke(app, ["show", "--config", str(file)])
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.output.splitlines()]
    assert lines[0] == ["key", "value", "source"]
    rows = {key: (value, source) for key, value, source in lines[1:]}
    assert rows["mode"] == ("mock", f"file {file}")
    assert rows["mlx.query_prompt"] == ('"query: "', f"file {file}")
    assert rows["mlx.normalize"] == ("null", f"file {file}")
    assert rows["mlx.batch_size"] == ("32", "environment AKIDB_EMBEDDING__MLX__BATCH_SIZE")
    assert rows["mlx.batch_timeout_ms"] == ("50", "default")


def test_json(file: Path) -> None:
    result = CliRunner().invoke(app, ["show", "-c", str(file), "--json"])
    rows = {row["key"]: row for row in json.loads(result.output)}
    assert rows["mode"] == {"key": "mode", "value": "mock", "source": f"file {file}"}
    assert rows["mlx.normalize"]["value"] is None
    assert rows["mlx.batch_size"]["value"] == 10


def test_faults_are_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", "--config", str(tmp_path / "absent.yaml")])
    assert isinstance(result.exception, InvalidInputError)
    assert "absent.yaml" in str(result.exception)
