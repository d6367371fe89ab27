"""The configuration: precedence of sources, and rejected values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from akidb_mlx_plugin.config import EmbeddingConfig, flatten_config, load_with_origins
from akidb_mlx_plugin.errors import InvalidInputError


@pytest.fixture(autouse=True)
def _default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AKIDB_MODEL_CACHE_DIR", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write_file


FULL = """
embedding:
  mode: mock
  mlx:
    model: minilm-l6-v2
    dimension: null
    cache_dir: ~/models
    max_cache_gb: 2.5
    batch_size: 32
    batch_timeout_ms: 5
    normalize: false
    device: cpu
    query_prompt: "query: "
  mock: {dimension: 16}
  user_provided: {dimension: 3, model: mine}
  service: {queue_size: 5, deadline_ms: null}
"""


class TestValues:
    def test_defaults(self) -> None:
        config = EmbeddingConfig.load()
        assert (config.mode, config.mlx.model, config.mlx.dimension) == ("mlx", "qwen3-0.6b-4bit", None)
        assert (config.mlx.batch_size, config.mlx.batch_timeout_ms, config.mlx.max_cache_gb) == (10, 50, 10)
        assert (config.mlx.normalize, config.mlx.pooling, config.mlx.device) == (None, None, "auto")
        assert config.mlx.cache_dir == Path.home() / ".cache/akidb/models"

    def test_file(self, write: Any) -> None:
        config = EmbeddingConfig.load(write(FULL))
        assert config.mode == "mock"
        assert config.mlx.cache_dir == Path.home() / "models"
        assert (config.mlx.max_cache_gb, config.mlx.batch_size, config.mlx.normalize) == (2.5, 32, False)
        assert (config.mlx.query_prompt, config.mlx.document_prompt) == ("query: ", None)
        assert (config.mock.dimension, config.user_provided.model, config.service.deadline_ms) == (16, "mine", None)

    @pytest.mark.parametrize("text", ["embedding:\n", "embedding: {}\n", "embedding:\n  mlx:\n"])
    def test_empty_sections_are_all_defaults(self, write: Any, text: str) -> None:
        assert EmbeddingConfig.load(write(text)) == EmbeddingConfig.load()

    def test_equal_ones_are_one_key(self, write: Any) -> None:
        assert len({EmbeddingConfig.load(), EmbeddingConfig(), EmbeddingConfig.load(write("embedding: {}"))}) == 1

    def test_is_frozen(self) -> None:
        with pytest.raises(ValidationError):
            EmbeddingConfig.load().mode = "mock"  # type: ignore[misc]

    def test_arguments_go_to_the_section_of_the_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert EmbeddingConfig.from_arguments("m", dimension=8, normalize=False).mlx.dimension == 8
        assert EmbeddingConfig.from_arguments(mode="mock", dimension=8).mock.dimension == 8
        mine = EmbeddingConfig.from_arguments("mine", mode="user_provided", dimension=8).user_provided
        assert (mine.model, mine.dimension) == ("mine", 8)
        monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")
        assert EmbeddingConfig.from_arguments(Path("m"), dimension=9).mock.dimension == 9


def test_a_relative_path_is_a_folder_and_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = EmbeddingConfig.from_arguments(Path("bert/model"))
    assert config.mlx.model == str(tmp_path / "bert" / "model")


class TestPrecedence:
    def test_argument_over_environment_over_file_over_default(self, write: Any, monkeypatch: Any) -> None:
        file = write("embedding: {mlx: {model: from-file, batch_size: 1, device: cpu}}")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__MODEL", "from-environment")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__BATCH_SIZE", "2")
        config, origins = load_with_origins(file, {"mlx": {"model": "from-argument"}})
        values = flatten_config(config)
        assert [(values[key], origins[key]) for key in ("mlx.model", "mlx.batch_size", "mlx.device", "mode")] == [
            ("from-argument", "argument"),
            (2, "environment AKIDB_EMBEDDING__MLX__BATCH_SIZE"),
            ("cpu", f"file {file}"),
            ("mlx", "default"),
        ]

    def test_every_key_has_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = {
            "mode": "user_provided",
            "mlx.model": "null-model",
            "mlx.dimension": 64,
            "mlx.cache_dir": Path("/models"),
            "mlx.max_cache_gb": 0.5,
            "mlx.batch_size": 7,
            "mlx.batch_timeout_ms": 2.5,
            "mlx.normalize": False,
            "mlx.pooling": "cls+mean",
            "mlx.overflow": "error",
            "mlx.device": "gpu",
            "mlx.query_prompt": "query: ",
            "mlx.document_prompt": "",
            "mlx.query_task": "question_answering",
            "mlx.document_task": "clustering",
            "mlx.dtype": "bfloat16",
            "mlx.keep_warm_s": 30.0,
            "mock.dimension": 2,
            "user_provided.dimension": 5,
            "user_provided.model": "123",
            "service.queue_size": 9,
            "service.deadline_ms": None,
            "mlx.keep_alive": 300.0,
            "remote.url": "unix:///run/akidb.sock",
            "remote.token": "**********",
            "remote.timeout_ms": 1000.0,
            "remote.fallback": "local",
        }
        for key, value in wanted.items():
            variable = "AKIDB_EMBEDDING__" + key.upper().replace(".", "__")
            monkeypatch.setenv(variable, "null" if value is None else str(value))
        config, origins = load_with_origins()
        assert flatten_config(config) == wanted
        assert all(origin.startswith("environment AKIDB_EMBEDDING__") for origin in origins.values())

    def test_pooling_has_one_spelling(self, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        assert EmbeddingConfig.from_arguments("m", pooling=["cls", "mean"]).mlx.pooling == "cls+mean"
        assert EmbeddingConfig.from_arguments("m", pooling="cls + mean").mlx.pooling == "cls+mean"
        assert EmbeddingConfig.load(write("embedding: {mlx: {pooling: [lasttoken]}}")).mlx.pooling == "lasttoken"
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__POOLING", "[max, mean]")
        assert EmbeddingConfig.load().mlx.pooling == "max+mean"
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__POOLING", "null")
        assert EmbeddingConfig.load().mlx.pooling is None

    def test_cache_dir_has_two_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", "/general")
        assert EmbeddingConfig.load().mlx.cache_dir == Path("/general")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__CACHE_DIR", "/special")
        assert EmbeddingConfig.load().mlx.cache_dir == Path("/special")


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("embedding: {mlx: {batch_sizes: 3}}", r"'mlx.batch_sizes' = 3 \(file .*config.yaml\).*'mlx.batch_size'"),
            ("embedding: {mode: mlx, modell: x}", r"'modell' = 'x' \(file .*\)"),
            ("embedding: {mlx.model: x}", r"'mlx.model' = 'x'"),
            ("mlx: {}\nembedding: {}", r"unknown key 'mlx' \(file .*\); all settings go under 'embedding'"),
            ("embedding: {mlx: {batch_size: ten}}", r"mlx.batch_size = 'ten' \(file .*\): .*integer"),
            ("embedding: {mlx: {batch_size: true}}", r"mlx.batch_size = True .*integer"),
            ("embedding: {mlx: {batch_size: 0}}", r"mlx.batch_size = 0 .*greater than or equal to 1"),
            ("embedding: {mlx: {batch_timeout_ms: -1}}", r"mlx.batch_timeout_ms = -1 "),
            ("embedding: {mlx: {max_cache_gb: .nan}}", r"mlx.max_cache_gb = nan "),
            ("embedding: {mlx: {normalize: 'yes'}}", r"mlx.normalize = 'yes' .*boolean"),
            (
                "embedding: {mlx: {pooling: last}}",
                r"mlx.pooling = 'last' \(file .*one of cls, max, mean, .*, lasttoken",
            ),
            ("embedding: {mlx: {pooling: []}}", r"mlx.pooling = \[\] .*one of cls, max"),
            ("embedding: {mlx: {pooling: [mean, 3]}}", r"mlx.pooling = \['mean', 3\] .*one of cls, max"),
            ("embedding: {mlx: {pooling: ''}}", r"mlx.pooling = '' .*one of cls, max"),
            ("embedding: {mlx: {pooling: true}}", r"mlx.pooling = True .*one of cls, max"),
            ("embedding: {mlx: {device: tpu}}", r"mlx.device = 'tpu' .*'auto', 'gpu' or 'cpu'; a graphics processor"),
            ("embedding: {mlx: {model: ''}}", r"mlx.model = '' "),
            ("embedding: {mode: magic}", r"mode = 'magic' .*'mlx', 'user_provided' or 'mock'"),
            ("embedding: {mlx: 5}", r"mlx must be a mapping.*got 5 \(file .*\)"),
            ("embedding: [1]", r"embedding must be a mapping"),
            ("- 1", r"must have the key 'embedding'"),
            ("", r"must have the key 'embedding'"),
            ("{}", r"must have the key 'embedding'"),
            ("embedding: {mode: [", r"config.yaml is not YAML"),
        ],
    )
    def test_files(self, write: Any, text: str, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            EmbeddingConfig.load(write(text))

    def test_all_faults_are_named_at_once(self, write: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"mode = 'x'.*; mlx.dimension = 0.*; mock.dimension = 'y'"):
            EmbeddingConfig.load(write("embedding: {mode: x, mlx: {dimension: 0}, mock: {dimension: y}}"))

    def test_missing_and_unreadable_files(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"no configuration file at .*absent.yaml"):
            EmbeddingConfig.load(tmp_path / "absent.yaml")
        with pytest.raises(InvalidInputError, match="cannot read"):
            EmbeddingConfig.load(tmp_path)
        (tmp_path / "binary.yaml").write_bytes(b"embedding: \xff\xfe")
        with pytest.raises(InvalidInputError, match=r"cannot read .*binary.yaml"):
            EmbeddingConfig.load(tmp_path / "binary.yaml")

    @pytest.mark.parametrize(
        ("variable", "value", "message"),
        [
            ("AKIDB_EMBEDDING__MLX__BATCHSIZE", "3", r"'mlx.batchsize' \(environment .*BATCHSIZE\).*'mlx.batch_size'"),
            ("AKIDB_EMBEDDING__MLX__BATCH_SIZE", "many", r"mlx.batch_size = 'many' \(environment AKIDB.*BATCH_SIZE\)"),
            ("AKIDB_EMBEDDING__MLX__BATCH_SIZE", "[", r"mlx.batch_size = '\['"),
            ("AKIDB_EMBEDDING__MODE", "", r"mode = ''"),
        ],
    )
    def test_variables(self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
        monkeypatch.setenv(variable, value)
        with pytest.raises(InvalidInputError, match=message):
            EmbeddingConfig.load()

    def test_arguments(self) -> None:
        with pytest.raises(InvalidInputError, match=r"mlx.dimension = 0 \(argument\)"):
            EmbeddingConfig.from_arguments("m", dimension=0)
        with pytest.raises(InvalidInputError, match=r"mode = 'x' \(argument\)"):
            EmbeddingConfig.from_arguments(mode="x")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match=r"unknown key 'mlx.modle' = 'm' \(argument\)"):
            EmbeddingConfig.load(overrides={"mlx": {"modle": "m"}})
