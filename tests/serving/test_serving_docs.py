"""docs/serving.md: its code runs against a server, its commands and options exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_server import LocalServer, serving, wait_until
from starlette.testclient import TestClient
from typer.testing import CliRunner

from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.config_sections import RemoteConfig
from akidb_mlx_plugin.errors import QueueFullError
from akidb_mlx_plugin.serving.bodies import EmbeddingsBody

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8321"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def minilm_server(minilm_dir: Path) -> Iterator[LocalServer]:
    with serving(EmbeddingConfig.model_validate({"mlx": {"model": "minilm-l6-v2"}})) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("py"), ids=lambda code: code.splitlines()[0])
def test_python_runs(
    code: str,
    minilm_server: LocalServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHROMA_OPENAI_API_KEY", "")
    is_ours = "MLXEmbeddingFunction" in code
    if is_ours:
        monkeypatch.setenv("AKIDB_EMBEDDING__REMOTE__URL", minilm_server.url)
    minilm_server.requests.clear()
    exec(code.replace(ADDRESS, minilm_server.url), {})
    assert capsys.readouterr().out.strip()
    assert ("/v1/embeddings" in minilm_server.requests) == (is_ours or ADDRESS in code)


def test_the_web_application(minilm_server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks('python title="app.py"')
    monkeypatch.setenv("AKIDB_EMBEDDING__REMOTE__URL", minilm_server.url)
    page: dict[str, Any] = {}
    exec(code, page)
    minilm_server.requests.clear()
    with TestClient(page["app"]) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, "the model is loaded")
        assert len(client.get("/embed", params={"text": "capital cities"}).json()) == 384
        assert "/v1/embeddings" in minilm_server.requests
        monkeypatch.setattr(page["EmbeddingService"], "aembed_batch", _refuse)
        assert client.get("/embed", params={"text": "a"}).status_code == 429


async def _refuse(*_: Any, **__: Any) -> None:
    raise QueueFullError("full")


@pytest.mark.slow
def test_commands_exist() -> None:
    lines = [line.partition("akidb-mlx ")[2] for line in "".join(blocks("bash")).splitlines() if "akidb-mlx " in line]
    inline = re.findall(r"`akidb-mlx ([^`]+)`", PAGE)
    assert len(lines) == 5
    for line in (*lines, *inline):
        words = shlex.split(line)
        path = [word for word in words if re.fullmatch(r"[a-z]+", word)][:2]
        shown = CliRunner().invoke(app, [*path, "--help"])
        assert shown.exit_code == 0, shown.output
        assert all(word in shown.output for word in words if word.startswith("--"))


def test_options_fields_and_settings_are_there() -> None:
    options = CliRunner().invoke(app, ["serve", "--help"]).output
    assert all(option in options for option in re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))
    table = PAGE.partition("| Field |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(EmbeddingsBody.model_fields) - {"user"}
    (text,) = blocks("yaml")
    shown = yaml.safe_load(text)["embedding"]["remote"]
    assert shown | {"url": None} == RemoteConfig().model_dump()
