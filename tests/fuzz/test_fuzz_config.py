"""Configuration files and environments that nobody meant end in a configuration or an error of this package."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import indent
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from fuzzing import SCALARS, TEXTS, VALUES, deep_values, fuzz
from hypothesis import strategies as st

from akidb_mlx_plugin.config import ENVIRONMENT_PREFIX, EmbeddingConfig, flatten_config
from akidb_mlx_plugin.errors import InvalidInputError

pytestmark = pytest.mark.slow

KEYS = tuple(flatten_config(EmbeddingConfig()))
SECTIONS = ("mlx", "mock", "user_provided", "service")
_NAMES = st.sampled_from(sorted({part for key in KEYS for part in key.split(".")})) | TEXTS
_SECTION = st.dictionaries(_NAMES, VALUES | deep_values(), max_size=4)
_CONFIGURATIONS = st.fixed_dictionaries(
    {}, optional={"mode": SCALARS, **dict.fromkeys(SECTIONS, _SECTION | SCALARS), "other": VALUES}
)


def _dump(value: Any) -> bytes:
    try:
        return yaml.dump({"embedding": value}, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return b"embedding: {}"


_TOKENS = st.sampled_from(
    [
        *("embedding:", "mlx:", "mode:", "mock", "\n", "  ", "- ", "&a ", "*a", "!!python/object:os.system ", "<<: "),
        *("? ", "{", "}", "[", "]", ": ", "|", ">", "'", '"', "2001-99-99", "0o8", "1_0", ".inf", "~", "\t", "---"),
        *("...", "%", "#"),
    ]
)
_FILES = st.one_of(
    _CONFIGURATIONS.map(_dump),
    st.lists(_TOKENS | TEXTS, max_size=12).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
)


def test_files(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    def load(content: bytes) -> None:
        (tmp_path / "config.yaml").write_bytes(content)
        EmbeddingConfig.load(tmp_path / "config.yaml")

    fuzz(request, _FILES, load, usual=150)


def _bomb(levels: int) -> str:
    """Return aliases of aliases: a few hundred bytes that stand for ten to the power of their levels."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "above", [[], ["embedding:"], ["embedding:", "  mlx:"], ["embedding:", "  mlx:", "    model:"]]
)
def test_aliases_of_aliases(above: list[str], tmp_path: Path) -> None:
    content = "\n".join([*above, indent(_bomb(9), "  " * len(above))])
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InvalidInputError) as caught:
        EmbeddingConfig.load(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 2000


_VARIABLES = st.sampled_from([f"{ENVIRONMENT_PREFIX}{key.upper().replace('.', '__')}" for key in KEYS]) | TEXTS.map(
    lambda text: ENVIRONMENT_PREFIX + text
)
_ENVIRONMENTS = st.dictionaries(_VARIABLES, st.one_of(TEXTS, SCALARS.map(str), st.just("{a: &b [*b]}")), max_size=3)


def test_environments(request: pytest.FixtureRequest) -> None:
    def load(variables: dict[str, str]) -> None:
        # What no operating system can hand over.
        clean = {key.encode(errors="replace").decode(): value for key, value in variables.items()}
        clean = {key.replace("\0", ""): value.encode(errors="replace").decode() for key, value in clean.items()}
        with patch.dict(os.environ, {key.replace("=", ""): value.replace("\0", "") for key, value in clean.items()}):
            EmbeddingConfig.load()

    fuzz(request, _ENVIRONMENTS, load, usual=150)


def test_brackets_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{ENVIRONMENT_PREFIX}MLX__BATCH_SIZE", "[" * 1000)
    with pytest.raises(InvalidInputError, match=r"mlx\.batch_size"):
        EmbeddingConfig.load()
