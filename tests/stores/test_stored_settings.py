"""What a database keeps of a function, and what is made of it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub.registry import list_models
from akidb_mlx_plugin.stores.settings import (
    SETTINGS,
    check_same_settings,
    check_settings,
    config_from_stored,
    stored_settings,
)

MINILM = {**dict.fromkeys(SETTINGS), "model": "minilm-l6-v2", "mode": "mlx", "dimension": 384, "normalize": True}
TEXTS = st.none() | st.text(max_size=20)
NAMES = st.sampled_from(["minilm-l6-v2", "org/model", "/a/folder", "nothing known"])
CONFIGURATIONS = st.fixed_dictionaries(
    {
        "model": NAMES,
        "mode": st.just("mlx"),
        "dimension": st.none() | st.integers(1, 5000),
        "normalize": st.none() | st.booleans(),
        "pooling": st.sampled_from([None, "mean", "cls+mean"]),
        "query_prompt": TEXTS,
        "document_prompt": TEXTS,
    }
)


def deep(levels: int) -> Any:
    """Return lists in lists, as a stranger's JSON may hold."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


class TestThereAndBack:
    @pytest.mark.slow
    @given(CONFIGURATIONS)
    def test_any_space_of_a_model(self, settings: dict[str, Any]) -> None:
        kept = json.loads(json.dumps(stored_settings(config_from_stored(settings))))
        assert kept.keys() == set(SETTINGS)
        assert stored_settings(config_from_stored(kept)) == kept
        given = {**dict.fromkeys(SETTINGS), **settings}
        if settings["model"] == "minilm-l6-v2":
            if given["normalize"] is None:
                given["normalize"] = True
            if given["dimension"] is None and given["pooling"] != "cls+mean":
                given["dimension"] = 384
        assert kept == given

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"mode": "mock", "dimension": 5}, {"model": None, "mode": "mock", "dimension": 5}),
            (
                {"mode": "user_provided", "model": "theirs", "dimension": 9},
                {"model": "theirs", "mode": "user_provided", "dimension": 9},
            ),
            ({"mode": "user_provided"}, {"model": None, "mode": "user_provided", "dimension": None}),
        ],
    )
    def test_the_other_modes(self, arguments: dict[str, Any], expected: dict[str, Any]) -> None:
        config = EmbeddingConfig.from_arguments(**arguments)
        kept = stored_settings(config)
        assert expected.items() <= kept.items()
        assert config_from_stored(kept) == config

    @pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)
    def test_the_registrys_defaults_are_spelled_out(self, spec: Any) -> None:
        """Another default in a later version must change no existing collection."""
        for model in (spec.name, spec.repo):
            kept = stored_settings(EmbeddingConfig.from_arguments(model))
            assert (kept["dimension"], kept["normalize"]) == (spec.dimension, True)

    def test_what_the_checkpoint_says_is_left_to_it(self) -> None:
        kept = stored_settings(EmbeddingConfig.from_arguments("org/model"))
        assert (kept["dimension"], kept["normalize"], kept["pooling"]) == (None, None, None)

    def test_unit_length_that_was_stored_stays(self) -> None:
        """It was written down for every model once."""
        old = {"model": "org/model", "mode": "mlx", "dimension": None, "normalize": True, "query_prompt": None}
        assert config_from_stored(old).mlx.normalize is True
        assert stored_settings(config_from_stored(old))["normalize"] is True

    def test_several_poolings_of_a_model_by_name_have_their_own_length(self) -> None:
        config = EmbeddingConfig.from_arguments("minilm-l6-v2", pooling=("cls", "mean"))
        assert stored_settings(config)["dimension"] is None

    def test_missing_settings_have_their_defaults(self) -> None:
        assert stored_settings(config_from_stored({"model": "minilm-l6-v2"})) == MINILM


class TestThisMachine:
    def test_what_belongs_to_it_is_not_stored(self, tmp_path: Path) -> None:
        config = EmbeddingConfig.load(
            overrides={"mlx": {"model": "minilm-l6-v2", "cache_dir": tmp_path, "device": "cpu", "batch_size": 3}}
        )
        assert stored_settings(config) == MINILM

    def test_and_comes_from_it_when_read_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__DEVICE", "cpu")
        config = config_from_stored(MINILM)
        assert (config.mlx.cache_dir, config.mlx.device) == (tmp_path, "cpu")

    def test_but_nothing_that_makes_the_space(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for key, value in {
            "MODE": "mock",
            "MLX__MODEL": "gemma-300m-4bit",
            "MLX__DIMENSION": "128",
            "MLX__NORMALIZE": "false",
            "MLX__QUERY_PROMPT": "mine: ",
            "MLX__DOCUMENT_PROMPT": "mine: ",
            "MLX__POOLING": "cls",
        }.items():
            monkeypatch.setenv(f"AKIDB_EMBEDDING__{key}", value)
        assert stored_settings(config_from_stored(MINILM)) == MINILM
        # As a collection has them that is older than this setting.
        older = {key: value for key, value in MINILM.items() if key != "pooling"}
        assert stored_settings(config_from_stored(older)) == MINILM
        assert stored_settings(config_from_stored(older, stored=False)) == {**MINILM, "pooling": "cls"}

    def test_a_relative_folder_is_stored_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who reopens the database may stand elsewhere, and find no model or another one."""
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
        for model, folder in (("./m", "below/m"), ("../m", "m"), (".", "below"), ("..", "")):
            assert stored_settings(EmbeddingConfig.from_arguments(model))["model"] == str(tmp_path / folder)
        (tmp_path / "below").rmdir()
        assert stored_settings(EmbeddingConfig.from_arguments("./m"))["model"] == "./m"

    @pytest.mark.parametrize("model", [" ", "~nobody-of-that-name/m", "/" + "x" * 5000, "a\0b"])
    def test_settings_look_at_no_file(self, model: str) -> None:
        """A database that asks for the settings takes any exception for a function of the old kind."""
        assert stored_settings(EmbeddingConfig.from_arguments(model))["model"] == model


class TestStrangers:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({**MINILM, "trust_remote_code": True}, "unknown embedding settings trust_remote_code"),
            ({**MINILM, "cache_dir": "/"}, "cache_dir"),
            ({**MINILM, 5: 5}, "unknown embedding settings 5"),
            ([], "mapping, got list"),
            (None, "mapping, got NoneType"),
            ({**MINILM, "mode": "python"}, "mode"),
            ({**MINILM, "mode": ["mlx"]}, "mode"),
            ({**MINILM, "model": ""}, "stored setting model = "),
            ({**MINILM, "model": {"repo": "a/b"}}, "stored setting model = "),
            ({**MINILM, "dimension": 0}, "stored setting dimension = "),
            ({**MINILM, "dimension": 1e9}, "stored setting dimension = "),
            ({**MINILM, "normalize": "yes"}, "stored setting normalize = "),
            ({**MINILM, "query_prompt": 5}, "stored setting query_prompt = "),
            ({**MINILM, "pooling": "last"}, "stored setting pooling = 'last'"),
            ({**MINILM, "pooling": {"mean": 1}}, "stored setting pooling = "),
            ({**MINILM, "dimension": True}, "stored setting dimension = "),
            ({**MINILM, "dimension": 2**20 + 1}, "no vectors have more than"),
            ({**MINILM, "dimension": 10**6000}, "no vectors have more than"),
            ({**MINILM, "mode": "mock", "dimension": 10**20}, "no vectors have more than"),
            ({**MINILM, "mode": "mock", "model": 5}, "stored setting model = 5"),
            ({**MINILM, "mode": "user_provided", "dimension": "8"}, "stored setting dimension = '8'"),
            ({**MINILM, "query_task": ""}, "stored setting query_task = ''"),
            ({**MINILM, "model": deep(100_000)}, "stored setting model = "),
            ({**MINILM, "model": "x" * 10**6, "normalize": 1}, "stored setting normalize = 1"),
        ],
    )
    def test_unusable_settings(self, settings: Any, message: str) -> None:
        for use in (check_settings, config_from_stored):
            with pytest.raises(InvalidInputError, match=message) as raised:
                use(settings)
            assert len(str(raised.value)) < 500

    def test_a_check_looks_at_no_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chroma takes an error here for a function that cannot be stored, and stores none."""
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__DIMENSION", "not a number")
        check_settings(MINILM)

    def test_unknown_settings_name_the_known_and_the_remedy(self) -> None:
        with pytest.raises(InvalidInputError, match=r"knows model, mode, dimension, .*upgrade akidb-mlx-plugin"):
            check_settings({"new": 1})


class TestSameSpace:
    def test_equal_settings_pass(self) -> None:
        check_same_settings(MINILM, dict(MINILM))

    def test_a_setting_that_is_missing_is_its_default(self) -> None:
        check_same_settings({key: value for key, value in MINILM.items() if value is not None}, MINILM)

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "gemma-300m-4bit"},
            {"dimension": 128},
            {"normalize": False},
            {"pooling": "cls"},
            {"query_prompt": ""},
            {"document_prompt": "d: "},
            {"mode": "mock"},
        ],
    )
    def test_any_change_is_told_with_both_values(self, change: dict[str, Any]) -> None:
        ((key, value),) = change.items()
        with pytest.raises(InvalidInputError, match=rf"{key}: {MINILM[key]!r} -> {value!r}\); .*reembed"):
            check_same_settings(MINILM, {**MINILM, **change})
