"""The section `remote` of the configuration."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from akidb_mlx_plugin.cli.config import app as config_app
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.settings import stored_settings


def test_the_token_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__REMOTE__URL", "http://localhost:8321/")
    monkeypatch.setenv("AKIDB_EMBEDDING__REMOTE__TOKEN", "hidden")
    config = EmbeddingConfig.load()
    assert config.remote.url == "http://localhost:8321"
    shown = [CliRunner().invoke(config_app, ["show", *options]).output for options in ([], ["--json"])]
    assert all("http://localhost:8321" in text for text in shown)
    assert "hidden" not in repr(config) + "".join(shown)
    with pytest.raises(InvalidInputError) as caught:
        EmbeddingConfig.load(overrides={"remote": {"token": ["hidden"]}})
    assert "hidden" not in str(caught.value)


def test_a_collection_stores_none_of_it() -> None:
    here = EmbeddingConfig.model_validate({"mlx": {"model": "minilm-l6-v2"}})
    there = EmbeddingConfig.model_validate(
        {"mlx": {"model": "minilm-l6-v2"}, "remote": {"url": "http://localhost:1", "token": "hidden"}}
    )
    assert stored_settings(here) == stored_settings(there)


@pytest.mark.parametrize(
    "url", ["localhost:8321", "ftp://host", "unix://relative", "http://", "http://host?x=1", "http://u:p@host", 5]
)
def test_addresses(url: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"remote\.url"):
        EmbeddingConfig.load(overrides={"remote": {"url": url}})
