"""`akidb-mlx models` and `akidb-mlx cache`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden_models import GOLDEN
from loopback_hub import REPO, WEIGHTS, Hub, tiny_files
from typer.testing import CliRunner

from akidb_mlx_plugin.cli import cache, models
from akidb_mlx_plugin.cli.cache import human_size
from akidb_mlx_plugin.errors import DownloadError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.hub import ensure_model
from akidb_mlx_plugin.hub.locks import mark_in_use
from akidb_mlx_plugin.hub.snapshots import shared_cache_dir

pytest_plugins = ("hub_fixtures",)


def run(app: Any, *arguments: str, fails: type[Exception] | None = None) -> Any:
    result = CliRunner().invoke(app, arguments)
    if fails:
        assert isinstance(result.exception, fails), result.output
    else:
        assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def files_of(folder: Path, without: str = "") -> dict[str, bytes]:
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {path: content for path, content in files.items() if path != without}


def table(result: Any) -> list[dict[str, str]]:
    header, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture
def shared(hub: Hub, cache_dir: Path) -> Path:
    """A model that another tool has brought into the Hugging Face cache."""
    from huggingface_hub import snapshot_download

    hub.add(REPO, files_of(GOLDEN / "bert" / "model"))
    return Path(snapshot_download(REPO, cache_dir=shared_cache_dir(), endpoint=hub.url))


@pytest.fixture
def folder(hub: Hub, cache_dir: Path) -> Path:
    hub.add(REPO, tiny_files())
    return ensure_model(REPO).folder


class TestModels:
    @pytest.mark.usefixtures("cache_dir")
    def test_list(self) -> None:
        rows = table(run(models.app, "list"))
        assert {row["model"]: row["kind"] for row in rows} == {
            "qwen3-0.6b-4bit": "embedding",
            "gemma-300m-4bit": "embedding",
            "minilm-l6-v2": "embedding",
            "mpnet-base-v2": "embedding",
            "ms-marco-minilm-l6": "reranker",
            "bge-reranker-v2-m3": "reranker",
            "qwen3-reranker-0.6b-4bit": "reranker",
        }
        assert rows[2] | {"summary": ""} == {
            "model": "minilm-l6-v2",
            "kind": "embedding",
            "dimension": "384",
            "max_tokens": "256",
            "size": "91.0 MB",
            "licence": "Apache-2.0",
            "cached": "no",
            "summary": "",
        }

    @pytest.mark.usefixtures("folder")
    def test_list_names_other_cached_models(self) -> None:
        rows = json.loads(run(models.app, "list", "--json").stdout)
        assert [row["cached"] for row in rows] == [False] * 7 + [True]
        assert rows[7]["model"] == REPO

    @pytest.mark.slow
    def test_download(self, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, tiny_files())
        printed = run(models.app, "download", REPO, "--cache-dir", str(tmp_path)).stdout.strip()
        assert (Path(printed) / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        new = hub.add(REPO, tiny_files(seed=1))
        arguments = ("download", REPO, "--cache-dir", str(tmp_path))
        assert run(models.app, *arguments).stdout.strip() == printed
        assert Path(run(models.app, *arguments, "--force").stdout.strip()).name == new
        assert Path(run(models.app, *arguments, "--revision", new).stdout.strip()).name == new

    @pytest.mark.usefixtures("cache_dir", "hub")
    def test_download_of_what_is_not_there(self) -> None:
        run(models.app, "download", "org/nothing", fails=ModelNotFoundError)

    def test_info_of_a_model_in_the_cache(self, hub: Hub, cache_dir: Path) -> None:
        hub.add("BAAI/bge-m3", files_of(GOLDEN / "xlm_roberta" / "model", without="1_Pooling/config.json"))
        ensure_model("BAAI/bge-m3")
        hub.requests.clear()
        facts = json.loads(run(models.app, "info", "BAAI/bge-m3", "--json").stdout)
        assert (facts["cached"], facts["hidden_size"], facts["supported"]) == (True, 32, True)
        assert (facts["pooling"], facts["pooling_from"]) == ("cls", "family BAAI/bge-m3")
        rows = {row["field"]: row["value"] for row in table(run(models.app, "info", "BAAI/bge-m3"))}
        assert (rows["family"], rows["supported"]) == ("BAAI/bge-m3", "yes")
        assert hub.requests == []

    def test_info_of_a_folder(self, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "qwen3" / "model", tmp_path / "m")
        facts = json.loads(run(models.app, "info", str(tmp_path / "m"), "--json").stdout)
        assert (facts["family"], facts["pooling_from"]) == ("none known", "1_Pooling/config.json")
        assert facts["supported"] is True
        assert facts["memory_bytes"] > 0
        (tmp_path / "m" / "tokenizer.json").unlink()
        result = CliRunner().invoke(models.app, ["info", str(tmp_path / "m"), "--json"])
        assert result.exit_code == 1
        assert json.loads(result.stdout)["supported"] is False
        assert "tokenizer.json" in json.loads(result.stdout)["reason"]

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_info_of_a_repository_reads_its_settings_alone(self, hub: Hub) -> None:
        hub.add("org/known", files_of(GOLDEN / "bert" / "model"))
        facts = json.loads(run(models.app, "info", "org/known", "--json").stdout)
        assert (facts["cached"], facts["supported"], facts["pooling"]) == (False, True, "mean")
        assert not [request for request in hub.requests if request.path.endswith("safetensors")]
        files = files_of(GOLDEN / "bert" / "model")
        code = {"model_type": "bert", "hidden_size": 4, "auto_map": {"AutoModel": "org/other--modeling.Other"}}
        hub.add("org/code", files | {"config.json": json.dumps(code).encode()})
        result = CliRunner().invoke(models.app, ["info", "org/code", "--json"])
        assert result.exit_code == 1
        assert json.loads(result.stdout)["reason"].startswith("org/code/config.json has auto_map")

    @pytest.mark.usefixtures("cache_dir")
    def test_what_cannot_be_computed_is_refused_before_its_weights_are_downloaded(self, hub: Hub) -> None:
        files = files_of(GOLDEN / "bert" / "model")
        code = {"model_type": "bert", "hidden_size": 4, "auto_map": {"AutoModel": "org/other--modeling.Other"}}
        hub.add(REPO, files | {"config.json": json.dumps(code).encode()})
        result = run(models.app, "download", REPO, fails=ModelNotFoundError)
        assert str(result.exception).startswith(f"{REPO}/config.json has auto_map")
        assert not [request for request in hub.requests if request.path.endswith("safetensors")]

    @pytest.mark.usefixtures("cache_dir", "hub")
    def test_info_of_what_the_hub_does_not_have(self) -> None:
        facts = json.loads(run(models.app, "info", "org/none", "--json", fails=ModelNotFoundError).stdout or "{}")
        assert facts == {}

    def test_info_of_what_is_no_checkpoint(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(models.app, ["info", str(tmp_path), "--json"])
        assert result.exit_code == 1
        assert "not a checkpoint" in json.loads(result.stdout)["reason"]
        run(models.app, "info", "qwen4", fails=ModelNotFoundError)

    def test_verify(self, folder: Path) -> None:
        assert [row["state"] for row in table(run(models.app, "verify"))] == ["complete"]
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[5] ^= 1
        (folder / WEIGHTS).resolve().write_bytes(content)
        result = run(models.app, "verify", REPO, "--json", fails=DownloadError)
        assert json.loads(result.stdout)[0]["state"] == f"damaged: {WEIGHTS}"
        run(models.app, "download", REPO)
        run(models.app, "verify", REPO)
        run(models.app, "verify", "minilm-l6-v2", fails=ModelNotFoundError)

    def test_what_is_damaged_is_not_listed_as_complete(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / WEIGHTS).resolve().write_bytes(b"cut short")
        assert table(run(models.app, "list"))[-1]["cached"] == "damaged"
        assert json.loads(run(models.app, "list", "--json").stdout)[-1]["damaged"] is True
        assert table(run(cache.app, "list"))[0]["state"] == "damaged"
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(DownloadError, match=rf"{REPO} at main is not complete \(damaged: {WEIGHTS}\)"):
            ensure_model(REPO)

    def test_a_read_only_cache(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def open_lock(lock: Path) -> int:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(lock))

        mark_in_use(folder).close()
        monkeypatch.setattr("akidb_mlx_plugin.hub.locks._open_lock", open_lock)
        assert table(run(models.app, "list"))[-1]["cached"] == "yes"
        assert [row["state"] for row in table(run(models.app, "verify"))] == ["complete"]

    def test_verify_of_no_models(self, tmp_path: Path) -> None:
        result = run(models.app, "verify", "--cache-dir", str(tmp_path / "elsewhere"), fails=ModelNotFoundError)
        assert str(tmp_path / "elsewhere") in str(result.exception)

    @pytest.mark.slow
    def test_verify_of_the_hugging_face_cache(self, shared: Path, hub: Hub) -> None:
        hub.requests.clear()
        run(models.app, "verify", fails=ModelNotFoundError)
        assert table(run(models.app, "verify", REPO))[0]["folder"] == str(shared)
        (shared / "config.json").resolve().write_bytes(bytes((shared / "config.json").stat().st_size))
        result = run(models.app, "verify", REPO, fails=DownloadError)
        assert table(result)[0]["state"] == "damaged: config.json"
        assert hub.requests == []

    def test_list_marks_the_hugging_face_cache(self, shared: Path) -> None:
        assert table(run(models.app, "list"))[-1]["cached"] == "Hugging Face cache"
        row = json.loads(run(models.app, "list", "--json").stdout)[-1]
        assert (row["model"], row["cached"], row["shared"]) == (REPO, True, True)
        assert json.loads(run(models.app, "info", REPO, "--json").output)["folder"] == str(shared)

    @pytest.mark.slow
    def test_remove(self, folder: Path) -> None:
        with mark_in_use(folder):
            run(models.app, "remove", REPO, fails=ServiceUnavailableError)
        assert table(run(models.app, "remove", REPO))[0]["folder"] == str(folder)
        assert not folder.exists()
        run(models.app, "remove", REPO, fails=ModelNotFoundError)
        run(models.app, "remove", str(folder.parents[3]), fails=ModelNotFoundError)

    def test_remove_leaves_the_hugging_face_cache(self, shared: Path) -> None:
        run(models.app, "remove", REPO, fails=ModelNotFoundError)
        assert shared.exists()


class TestCache:
    def test_list_and_size(self, folder: Path, cache_dir: Path) -> None:
        (row,) = table(run(cache.app, "list"))
        assert (row["model"], row["state"], row["folder"]) == (REPO, "complete", str(folder))
        assert row["size"].endswith(" kB")
        (entry,) = json.loads(run(cache.app, "list", "--json").stdout)
        size = json.loads(run(cache.app, "size", "--json").stdout)
        assert size["folder"] == str(cache_dir)
        assert entry["size_bytes"] < size["size_bytes"] < entry["size_bytes"] + 5000
        assert run(cache.app, "size").stdout.strip() == f"{human_size(size['size_bytes'])} in {cache_dir}"

    def test_an_empty_cache(self, cache_dir: Path) -> None:
        result = run(cache.app, "list")
        assert (result.stdout, result.stderr) == ("", f"no models in {cache_dir}\n")
        assert run(cache.app, "list", "--json").stdout.strip() == "[]"
        assert run(cache.app, "size").stdout.strip() == f"0 B in {cache_dir}"

    def test_clean(self, folder: Path) -> None:
        assert table(run(cache.app, "clean", "--max-gb", "0", "--dry-run"))[0]["model"] == REPO
        assert folder.exists()
        assert run(cache.app, "clean").stdout == ""
        assert folder.exists()
        result = run(cache.app, "clean", "--max-gb", "0")
        assert table(result)[0]["model"] == REPO
        assert "the cache holds 0 B" in result.stderr
        assert not folder.exists()

    def test_migrate(self, cache_dir: Path) -> None:
        old = cache_dir / "org--tiny" / "0123456789ab"
        shutil.copytree(GOLDEN / "bert" / "model", old)
        files = [
            {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "mtime_ns": 0}
            for path, content in files_of(old).items()
        ]
        manifest = {"format": 1, "repo": REPO, "revision": "0123456789ab" * 3, "refs": {"main": 1.0}, "source": "a hub"}
        (old / "akidb-model.json").write_text(json.dumps({**manifest, "files": files}))
        assert table(run(cache.app, "list"))[0]["folder"] == str(old)
        with mark_in_use(old):
            result = run(cache.app, "migrate")
        assert (result.stdout, result.stderr) == ("", f"{old} was not moved: a process uses it\n")
        assert table(run(cache.app, "migrate"))[0]["model"] == REPO
        assert not old.exists()
        assert table(run(cache.app, "list"))[0]["revision"] == ("0123456789ab" * 3)[:23]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_868_376, "90.9 MB"), (335e6, "335 MB"), (2.5e13, "25.0 TB")],
)
def test_human_size(size: float, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize("app", [models.app, cache.app], ids=["models", "cache"])
def test_every_command_shows_an_example(app: Any) -> None:
    for command in app.registered_commands:
        assert "Example: akidb-mlx" in command.callback.__doc__
