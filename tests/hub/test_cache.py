"""The model cache: its listing, its size, and who may be evicted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loopback_hub import REPO, WEIGHTS, WEIGHTS_BYTES, Fault, Hub, tiny_files

from akidb_mlx_plugin.errors import DownloadError, InvalidInputError
from akidb_mlx_plugin.hub import download_model, ensure_model, eviction
from akidb_mlx_plugin.hub.cache import (
    cache_size_gb,
    default_cache_dir,
    list_cached_models,
)
from akidb_mlx_plugin.hub.eviction import cleanup_cache, remove_model
from akidb_mlx_plugin.hub.locks import download_lock, mark_in_use, record_of

if TYPE_CHECKING:
    pass


pytest_plugins = ("hub_fixtures",)


Log = pytest.LogCaptureFixture


def names(cache_dir: Path) -> list[str]:
    return [model.name for model in list_cached_models(cache_dir)]


def one_model_gb(cache_dir: Path) -> float:
    return list_cached_models(cache_dir)[0].size_bytes / 1e9


class TestListing:
    def test_an_empty_cache(self, cache_dir: Path) -> None:
        assert list_cached_models() == []
        assert cache_size_gb() == 0
        assert cleanup_cache(0) == []
        assert not cache_dir.exists()

    def test_says_what_is_there(self, hub: Hub, cache_dir: Path) -> None:
        commit = hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        (model,) = list_cached_models()
        assert (model.name, model.repo, model.revision, model.folder) == (REPO, REPO, commit, folder)
        assert (model.in_use, model.partial) == (False, False)
        assert WEIGHTS_BYTES < model.size_bytes < WEIGHTS_BYTES + 10_000
        # With the listings, which a model's own size leaves out.
        assert 0 < cache_size_gb() * 1e9 - model.size_bytes < 5000
        assert list_cached_models(cache_dir) == list_cached_models(str(cache_dir))

    @pytest.mark.slow
    def test_the_least_recently_used_first(self, folders: list[Path], cache_dir: Path) -> None:
        assert names(cache_dir) == ["org/a", "org/b", "org/c"]
        ensure_model("org/a")
        assert names(cache_dir) == ["org/b", "org/c", "org/a"]
        mark_in_use(folders[1]).close()
        assert names(cache_dir) == ["org/c", "org/a", "org/b"]

    @pytest.mark.slow
    def test_an_unfinished_download_counts_but_is_no_model(self, hub: Hub, cache_dir: Path) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, *[Fault(status=503)] * 3)
        with pytest.raises(DownloadError):
            ensure_model(REPO)
        assert list_cached_models(cache_dir) == []
        (partial,) = list_cached_models(cache_dir, include_partial=True)
        assert (partial.repo, partial.partial, partial.in_use) == (REPO, True, False)
        assert cache_size_gb(cache_dir) * 1e9 == partial.size_bytes > 300
        with download_lock(cache_dir, REPO):
            assert list_cached_models(cache_dir, include_partial=True)[0].in_use
            assert cleanup_cache(0) == []
        assert cleanup_cache(0) == [partial]
        assert not partial.folder.exists()

    def test_what_is_left_beside_a_whole_commit(self, hub: Hub, cache_dir: Path) -> None:
        whole = hub.add(REPO, tiny_files())
        folder = ensure_model(REPO).folder
        hub.add(REPO, tiny_files(seed=1))
        hub.fail(WEIGHTS, *[Fault(status=503)] * 3)
        with pytest.raises(DownloadError):
            download_model(REPO, force=True)
        (folder.parent.parent / "blobs" / "x.incomplete").write_bytes(b"x")
        used = time.time() + 60
        os.utime(record_of(folder), (used, used))
        partial, model = list_cached_models(cache_dir, include_partial=True)
        assert (partial.partial, model.revision) == (True, whole)
        assert cleanup_cache(0, keep=(folder,)) == [partial]
        assert list_cached_models(cache_dir, include_partial=True) == [model]
        assert ensure_model(REPO, offline=True).folder == folder
        assert not list(cache_dir.rglob("*.incomplete"))

    def test_foreign_files_are_left_alone(self, cache_dir: Path) -> None:
        (cache_dir / "notes").mkdir(parents=True)
        (cache_dir / "org--x").mkdir()
        (cache_dir / "org--x" / "file").touch()
        assert list_cached_models(include_partial=True) == []
        assert cleanup_cache(0) == []
        assert (cache_dir / "org--x" / "file").exists()

    def test_the_folder_is_read_at_call_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", str(tmp_path / "x"))
        assert default_cache_dir() == tmp_path / "x"
        monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", "~/x")
        assert default_cache_dir() == Path.home() / "x"
        monkeypatch.delenv("AKIDB_MODEL_CACHE_DIR")
        assert default_cache_dir() == Path.home() / ".cache" / "akidb" / "models"


class TestEviction:
    @pytest.mark.slow
    def test_the_oldest_go_until_it_fits(self, folders: list[Path], cache_dir: Path) -> None:
        removed = cleanup_cache(1.5 * one_model_gb(cache_dir))
        assert [model.name for model in removed] == ["org/a", "org/b"]
        assert [folder.exists() for folder in folders] == [False, False, True]
        assert not folders[0].parent.parent.exists()

    @pytest.mark.slow
    @pytest.mark.usefixtures("folders")
    def test_nothing_goes_while_it_fits(self, cache_dir: Path) -> None:
        assert cleanup_cache(None) == []
        assert cleanup_cache(1) == []
        assert len(names(cache_dir)) == 3

    @pytest.mark.slow
    @pytest.mark.usefixtures("folders")
    def test_a_dry_run_only_tells(self, cache_dir: Path) -> None:
        assert [model.name for model in cleanup_cache(0, dry_run=True)] == ["org/a", "org/b", "org/c"]
        assert len(names(cache_dir)) == 3

    @pytest.mark.slow
    def test_what_is_kept(self, folders: list[Path], cache_dir: Path) -> None:
        assert [model.name for model in cleanup_cache(0, keep=("org/a", folders[1]))] == ["org/c"]
        assert names(cache_dir) == ["org/a", "org/b"]

    @pytest.mark.parametrize("limit", [-1, float("nan")])
    def test_a_limit_that_is_none(self, limit: float) -> None:
        with pytest.raises(InvalidInputError, match="0 GB or more"):
            cleanup_cache(limit)

    @pytest.mark.slow
    @pytest.mark.usefixtures("folders")
    def test_after_a_download_but_never_what_was_downloaded(self, hub: Hub, cache_dir: Path) -> None:
        hub.add(REPO, tiny_files())
        ensure_model(REPO, max_cache_gb=2.5 * one_model_gb(cache_dir))
        assert names(cache_dir) == ["org/c", REPO]
        hub.add("org/large", tiny_files(size=2 * WEIGHTS_BYTES))
        ensure_model("org/large", max_cache_gb=0)
        assert names(cache_dir) == ["org/large"]

    @pytest.mark.slow
    def test_an_evicted_model_is_downloaded_again(self, folders: list[Path]) -> None:
        cleanup_cache(0)
        assert ensure_model("org/a").folder == folders[0]

    @pytest.mark.slow
    def test_leaves_no_half_model_if_it_is_cut_short(
        self, folders: list[Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise PermissionError("not this one")

        monkeypatch.setattr("huggingface_hub.utils._cache_manager.shutil.rmtree", fail)
        assert cleanup_cache(0) == []
        assert names(cache_dir) == []
        assert len(list_cached_models(cache_dir, include_partial=True)) == 3
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model("org/a", offline=True)

    @pytest.mark.slow
    def test_one_that_cannot_be_removed_is_passed_over(
        self, hub: Hub, folders: list[Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
    ) -> None:
        """Of somebody else, in a shared cache."""

        def refuse(root: Path, folder: Path) -> None:
            if folder == folders[0]:
                raise PermissionError(13, "Permission denied", str(folder))
            delete(root, folder)

        delete = eviction._delete_revision
        monkeypatch.setattr(eviction, "_delete_revision", refuse)
        hub.add(REPO, tiny_files())
        assert ensure_model(REPO, max_cache_gb=one_model_gb(cache_dir) * 2.5).folder.is_dir()
        assert names(cache_dir) == ["org/a", REPO]
        assert f"cannot remove {folders[0]} from the model cache: Permission denied" in caplog.text

    @pytest.mark.slow
    def test_a_cache_of_another_user_is_no_failure_of_the_download(
        self, hub: Hub, folders: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: Log
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(eviction, "_remove_oldest", refuse)
        hub.add(REPO, tiny_files())
        assert ensure_model(REPO, max_cache_gb=0.001).folder.is_dir()
        assert "could not be kept below 0.001 GB" in caplog.text

    @pytest.mark.slow
    def test_a_linked_model_stays(self, folders: list[Path], cache_dir: Path, tmp_path: Path) -> None:
        elsewhere = folders[0].rename(tmp_path / "elsewhere")
        folders[0].symlink_to(elsewhere)
        repo = folders[1].parent.parent
        moved = repo.rename(tmp_path / "org--b")
        repo.symlink_to(moved)
        cleanup_cache(0)
        assert (elsewhere / WEIGHTS).is_symlink()
        assert (folders[1] / WEIGHTS).is_file()
        assert folders[0].is_symlink()
        assert repo.is_symlink()
        assert not folders[2].exists()

    def test_a_file_that_two_commits_have_stays_with_the_other(self, hub: Hub, cache_dir: Path) -> None:
        old = hub.add(REPO, tiny_files())
        ensure_model(REPO)
        hub.add(REPO, {**tiny_files(), "README.md": b"# another"})
        hub.requests.clear()
        folder = download_model(REPO, force=True)
        assert hub.count("file", WEIGHTS) == 0
        assert [model.revision for model in cleanup_cache(0, keep=(folder,))] == [old]
        assert ensure_model(REPO, offline=True).folder == download_model(REPO) == folder

    def test_of_two_repositories_with_the_same_commit_one_stays(self, hub: Hub, cache_dir: Path) -> None:
        hub.add(REPO, tiny_files())
        hub.add("org/origin", tiny_files())
        kept, gone = ensure_model(REPO).folder, ensure_model("org/origin").folder
        same = kept.rename(kept.with_name(gone.name))
        record_of(kept).rename(record_of(same))
        assert [model.repo for model in cleanup_cache(0, keep=(REPO,))] == ["org/origin"]
        assert (same / WEIGHTS).is_file()

    @pytest.mark.slow
    def test_a_repository_that_huggingface_hub_passes_over_goes_too(self, folders: list[Path]) -> None:
        (folders[0] / WEIGHTS).resolve().unlink()
        (folders[1].parent.parent / "refs" / "other").write_text("f" * 40)
        cleanup_cache(0)
        assert [folder.exists() for folder in folders] == [False] * 3

    @pytest.mark.slow
    def test_remove(self, folders: list[Path], cache_dir: Path) -> None:
        with mark_in_use(folders[1]):
            assert [len(models) for models in remove_model("org/b")] == [0, 1]
        assert [len(models) for models in remove_model("org/b")] == [1, 0]
        assert remove_model("org/b") == ([], [])
        assert names(cache_dir) == ["org/a", "org/c"]

    def test_without_a_home_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        monkeypatch.delenv("AKIDB_MODEL_CACHE_DIR", raising=False)
        with pytest.raises(InvalidInputError, match=r"no home directory .* set AKIDB_MODEL_CACHE_DIR"):
            default_cache_dir()
