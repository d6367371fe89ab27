"""Models from a hub: every failure of a download provoked on a loopback server."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loopback_hub import REPO, WEIGHTS, WEIGHTS_BYTES, Fault, Hub, tiny_files

from akidb_mlx_plugin.errors import DownloadError, InvalidInputError
from akidb_mlx_plugin.hub import download_model, ensure_model
from akidb_mlx_plugin.hub.cache import list_cached_models
from akidb_mlx_plugin.hub.locks import record_of

if TYPE_CHECKING:
    from hub_fixtures import Spawn


pytest_plugins = ("hub_fixtures",)


ENSURE = f"from akidb_mlx_plugin.hub import ensure_model; print('in', ensure_model({REPO!r}).folder, flush=True)"


LOUD = "import logging; logging.basicConfig(level=logging.INFO); "


def alter(file: Path, content: bytes) -> None:
    """Write into the blob behind a file of a snapshot."""
    file.resolve().write_bytes(content)


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this package nor huggingface_hub waits between attempts."""
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)


class TestWholeness:
    @pytest.mark.usefixtures("cache_dir")
    def test_a_damaged_body_is_fetched_again(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(corrupt=True))
        hub.fail("config.json", Fault(corrupt=True))
        model = ensure_model(REPO)
        assert (model.folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        assert hub.count("file", WEIGHTS) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", [Fault(corrupt=True), Fault(body=b"short"), Fault(body=bytes(400_000))])
    @pytest.mark.usefixtures("no_sleep")
    def test_a_body_that_stays_wrong_is_refused(self, hub: Hub, cache_dir: Path, fault: Fault) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, *[fault] * 9)
        with pytest.raises(DownloadError, match=r"(arrive|announced).*tried 3 times"):
            ensure_model(REPO)
        assert hub.count("file", WEIGHTS) == 3
        assert list_cached_models(cache_dir) == []

    @pytest.mark.usefixtures("cache_dir")
    def test_a_truncated_file_is_repaired_at_its_commit(self, hub: Hub) -> None:
        commit = hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        alter(folder / WEIGHTS, tiny_files()[WEIGHTS][:1000])
        hub.add(REPO, tiny_files(seed=1))
        hub.requests.clear()
        model = ensure_model(REPO)
        assert model.revision == commit, "a repair must not move to another version"
        assert (model.folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        assert hub.count("file") == 1, "the other files were good"

    @pytest.mark.usefixtures("cache_dir")
    def test_an_altered_or_missing_file_is_repaired(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        alter(folder / WEIGHTS, bytes(WEIGHTS_BYTES))
        (folder / "modules.json").unlink()
        (folder / "stray.safetensors").write_bytes(b"x")
        assert (ensure_model(REPO).folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        assert (folder / "modules.json").is_file()
        assert not (folder / "stray.safetensors").exists()

    @pytest.mark.usefixtures("cache_dir")
    def test_an_altered_file_of_the_right_size_is_found_by_download(self, hub: Hub) -> None:
        commit = hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        alter(folder / "config.json", tiny_files()["config.json"].replace(b"4", b"5"))
        alter(folder / WEIGHTS, bytes(WEIGHTS_BYTES))
        hub.add(REPO, tiny_files(seed=1))
        hub.requests.clear()
        assert download_model(REPO) == folder
        assert (folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        assert (folder / "config.json").read_bytes() == tiny_files()["config.json"]
        assert hub.count("file") == 2
        assert ensure_model(REPO).revision == commit

    @pytest.mark.usefixtures("cache_dir")
    def test_damage_without_a_network_is_told(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        alter(folder / WEIGHTS, b"")
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "text",
        [
            *("", "{}", "[]", '{"format_version": 99}', '{"format_version": 1, "files": []}'),
            '{"format_version": 1, "files": {"../x": {"size": 1, "blob_id": "%s"}}}' % ("a" * 40),
            '{"format_version": 1, "files": {"x": {"size": -1, "blob_id": "%s"}}}' % ("a" * 40),
            '{"format_version": 1, "files": {"x": {"size": 1, "blob_id": "../x"}}}',
        ],
    )
    @pytest.mark.usefixtures("cache_dir")
    def test_a_record_that_makes_no_sense(self, hub: Hub, text: str) -> None:
        hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        record_of(folder).write_text(text)
        hub.requests.clear()
        assert ensure_model(REPO).folder == folder
        assert hub.count("file") == 0, "the files themselves are good"

    def test_a_full_disk_is_noticed_before(self, hub: Hub, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
        hub.add(REPO, tiny_files())
        with pytest.raises(DownloadError, match="free"):
            ensure_model(REPO)
        assert hub.count("file") == 0
        assert list_cached_models(cache_dir) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("code", "words"),
        [(errno.ENOSPC, "full"), (errno.EROFS, "AKIDB_MODEL_CACHE_DIR"), (errno.EIO, "cannot be used")],
    )
    @pytest.mark.usefixtures("cache_dir")
    def test_a_disk_that_fails_meanwhile(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, code: int, words: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, "disk")

        from huggingface_hub import file_download

        hub.add(REPO, tiny_files())
        monkeypatch.setattr(file_download, "_chmod_and_move", fail)
        with pytest.raises(DownloadError, match=words):
            ensure_model(REPO)
        assert hub.count("file", "config.json") <= 2, "another attempt would fail as well"

    @pytest.mark.usefixtures("hub")
    def test_a_cache_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DownloadError, match="cannot be used"):
            ensure_model(REPO, cache_dir=tmp_path / "file")

    def test_a_file_that_is_a_link_elsewhere_leaves_its_target(self, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, tiny_files())
        folder = ensure_model(REPO, cache_dir=tmp_path / "cache").folder
        mine = tmp_path / "mine.json"
        mine.write_text("{}")
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(mine)
        (folder / "other.json").symlink_to(mine)
        assert (download_model(REPO, cache_dir=tmp_path / "cache") / "config.json").read_bytes() != b"{}"
        assert mine.read_text() == "{}"


class TestProcesses:
    @pytest.mark.slow
    def test_a_killed_download_starts_that_file_again(self, hub: Hub, cache_dir: Path, spawn: Spawn) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(stall_after=200_000))
        child = spawn(ENSURE)
        assert hub.stalled.wait(60)
        child.kill()
        assert list_cached_models(cache_dir) == []
        assert [model.partial for model in list_cached_models(cache_dir, include_partial=True)] == [True]
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)
        hub.requests.clear()
        model = ensure_model(REPO)
        assert hub.count("file") == hub.count("file", WEIGHTS) == 1, "the small files were there"
        assert (model.folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_two_processes_download_once(self, hub: Hub, spawn: Spawn) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(stall_after=1000))
        first = spawn(ENSURE)
        assert hub.stalled.wait(60)
        second = spawn(LOUD + ENSURE)
        second.read_until("another process is downloading")
        hub.release.set()
        first.read_until("in /")
        second.read_until("in /")
        assert hub.count("file", WEIGHTS) == 1
        assert hub.count("revision") == 1

    @pytest.mark.slow
    def test_importing_loads_nothing_heavy(self) -> None:
        code = (
            "import sys, akidb_mlx_plugin.hub.models, akidb_mlx_plugin.cli.models, akidb_mlx_plugin.cli.cache;"
            "print(sorted({'huggingface_hub', 'mlx', 'httpx', 'httpx2', 'tqdm'} & set(sys.modules)))"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == "[]"


class TestTrust:
    @pytest.mark.usefixtures("cache_dir")
    def test_a_strangers_repository_is_refused_before_any_request(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS"):
            ensure_model(REPO, trusted=False)
        assert hub.requests == []

    @pytest.mark.usefixtures("cache_dir")
    def test_so_is_another_revision_of_a_registered_one(self, hub: Hub) -> None:
        with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS"):
            ensure_model("minilm-l6-v2", revision="refs/pr/5", trusted=False)
        assert hub.requests == []

    @pytest.mark.slow
    @pytest.mark.parametrize("allowed", [REPO, "org/*", "other/x, ORG/Tiny"])
    @pytest.mark.usefixtures("cache_dir")
    def test_the_user_may_allow_it(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
        hub.add(REPO, tiny_files())
        monkeypatch.setenv("AKIDB_ALLOWED_MODELS", allowed)
        assert ensure_model(REPO, trusted=False).repo == REPO

    @pytest.mark.parametrize("allowed", ["", ",", "org/", "other/*", "tiny"])
    @pytest.mark.usefixtures("cache_dir")
    def test_what_does_not_allow_it(self, hub: Hub, monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
        monkeypatch.setenv("AKIDB_ALLOWED_MODELS", allowed)
        with pytest.raises(InvalidInputError):
            ensure_model(REPO, trusted=False)
        assert hub.requests == []

    @pytest.mark.usefixtures("cache_dir")
    def test_a_model_that_is_there_may_be_used_but_not_repaired(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        hub.requests.clear()
        assert ensure_model(REPO, trusted=False).folder == folder
        (folder / WEIGHTS).unlink()
        with pytest.raises(InvalidInputError):
            ensure_model(REPO, trusted=False)
        assert hub.requests == []

    @pytest.mark.usefixtures("cache_dir")
    def test_a_registered_name_is_downloaded(self, hub: Hub) -> None:
        hub.fail("revision", Fault(status=401))
        with pytest.raises(DownloadError, match="401"):
            ensure_model("qwen3-0.6b-4bit", trusted=False)
