"""The README: its code runs, its commands exist, its configuration is the whole one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.config import EmbeddingConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`(akidb-mlx [^`|<>]+)`", README)
    return sorted({line for line in (*lines, *inline) if line.startswith("akidb-mlx ")})


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
@pytest.mark.usefixtures("minilm_dir")
def test_python_runs(code: str, tmp_path: Path) -> None:
    if "akidb_mlx_ray" in code and find_spec("ray") is None:
        pytest.skip("needs the extra ray")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("command", commands())
def test_commands_exist_with_their_options(command: str) -> None:
    words = [word for word in shlex.split(command.split(" > ")[0])[1:] if not word.isupper()]
    path = [word for word in words if re.fullmatch(r"[a-z]+", word)][:2]
    shown = CliRunner().invoke(app, [*path, "--help"])
    if shown.exit_code != 0:  # the second word was an argument
        shown = CliRunner().invoke(app, [path[0], "--help"])
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words if word.startswith("--") and word != "--help"):
        assert option in shown.output


def test_configuration_names_every_key_with_its_default(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    assert EmbeddingConfig.load(file) == EmbeddingConfig()
    shown = yaml.safe_load(text)["embedding"]
    schema = EmbeddingConfig().model_dump()
    assert {key: set(value) if isinstance(value, dict) else None for key, value in shown.items()} == {
        key: set(value) if isinstance(value, dict) else None for key, value in schema.items()
    }


def test_two_commands_come_first() -> None:
    install, test = blocks("bash")[:2]
    assert "akidb-mlx demo" in install
    assert "pytest" in test
    assert README.index(install) < README.index("```python")
