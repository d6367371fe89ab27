"""The model cache: its listing, its size, and who may be evicted."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loopback_hub import REPO, WEIGHTS, WEIGHTS_BYTES, Hub, tiny_files

from akidb_mlx_plugin.checkpoints import lookup
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.hub import ensure_model
from akidb_mlx_plugin.hub.cache import (
    cache_size_gb,
    list_cached_models,
)
from akidb_mlx_plugin.hub.eviction import cleanup_cache
from akidb_mlx_plugin.hub.locks import mark_in_use, record_of

if TYPE_CHECKING:
    from hub_fixtures import Spawn


pytest_plugins = ("hub_fixtures",)


HOLD = """
import sys
from pathlib import Path
from akidb_mlx_plugin.hub.locks import mark_in_use
handle = mark_in_use(Path({folder!r}))
print("held", flush=True)
sys.stdin.read()
"""


class TestProbes:
    """Whoever looks at the cache is not taken for a user of its models."""

    @pytest.fixture(autouse=True)
    def _used_before(self, folders: list[Path]) -> None:
        for folder in folders:
            mark_in_use(folder).close()

    @pytest.mark.slow
    def test_a_size_asks_for_no_lock(self, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object) -> None:
            raise AssertionError("a lock was asked for")

        monkeypatch.setattr("fcntl.flock", refuse)
        assert cache_size_gb(cache_dir) * 1e9 > 3 * WEIGHTS_BYTES

    @pytest.mark.slow
    def test_a_lock_that_is_held_for_a_moment(self, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        flock, asked = fcntl.flock, []

        def busy_at_first(descriptor: int, operation: int) -> None:
            asked.append(operation)
            if len(asked) % 3:
                raise BlockingIOError
            flock(descriptor, operation)

        monkeypatch.setattr("fcntl.flock", busy_at_first)
        assert not any(model.in_use for model in list_cached_models(cache_dir))
        monkeypatch.undo()
        assert len(asked) == 9
        assert len(cleanup_cache(0, cache_dir=cache_dir)) == 3


class TestUse:
    def test_evicted_while_its_settings_are_read_it_is_fetched_again(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.add(REPO, tiny_files())
        read: list[Path] = []

        def evict_then_read(folder: Path, **_: object) -> Path:
            read.append(folder)
            if len(read) == 1:
                cleanup_cache(0)
                raise ModelNotFoundError("gone")
            return folder

        monkeypatch.setattr(lookup, "read_checkpoint", evict_then_read)
        monkeypatch.setattr(lookup, "check_settings", lambda *_, **__: None)
        assert lookup.find_checkpoint(REPO) == read[1]
        assert record_of(read[1]).is_file()

    @pytest.mark.slow
    def test_a_model_in_use_stays(self, folders: list[Path], cache_dir: Path) -> None:
        with mark_in_use(folders[0]), mark_in_use(folders[0]):
            assert [model.in_use for model in list_cached_models() if model.name == "org/a"] == [True]
            assert [model.name for model in cleanup_cache(0)] == ["org/b", "org/c"]
        assert [model.name for model in cleanup_cache(0)] == ["org/a"]

    @pytest.mark.slow
    def test_by_another_process_until_that_is_killed(self, folders: list[Path], cache_dir: Path, spawn: Spawn) -> None:
        child = spawn(HOLD.format(folder=str(folders[0])))
        child.read_until("held")
        assert [model.name for model in cleanup_cache(0)] == ["org/b", "org/c"]
        assert [model.name for model in list_cached_models(cache_dir)] == ["org/a"]
        child.kill()
        assert [model.name for model in cleanup_cache(0)] == ["org/a"]

    @pytest.mark.slow
    def test_one_that_was_found_damaged_meanwhile_stays(self, hub: Hub, folders: list[Path], cache_dir: Path) -> None:
        with mark_in_use(folders[0]):
            record_of(folders[0]).unlink()
            assert [model.name for model in cleanup_cache(0)] == ["org/b", "org/c"]
            assert (folders[0] / WEIGHTS).is_file()
        assert [model.partial for model in cleanup_cache(0)] == [True]
        assert not folders[0].exists()

    @pytest.mark.slow
    def test_closing_twice_does_no_harm(self, folders: list[Path]) -> None:
        handle = mark_in_use(folders[0])
        other = mark_in_use(folders[0])
        handle.close()
        handle.close()
        assert folders[0] not in {model.folder for model in cleanup_cache(0)}
        other.close()

    @pytest.mark.slow
    def test_of_what_was_evicted(self, folders: list[Path]) -> None:
        cleanup_cache(0)
        with pytest.raises(ModelNotFoundError, match="removed from the model cache"):
            mark_in_use(folders[0])

    def test_of_a_local_checkpoint_touches_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        mark_in_use(tmp_path / "model").close()
        assert [path.name for path in tmp_path.rglob("*")] == ["model"]

    @pytest.mark.slow
    def test_of_a_copy_of_a_cached_folder_touches_nothing(self, folders: list[Path], tmp_path: Path) -> None:
        copy = tmp_path / "elsewhere" / "snapshots" / folders[0].name
        shutil.copytree(folders[0], copy)
        mark_in_use(copy).close()
        assert not (tmp_path / ".locks").exists()
        assert not list((tmp_path / "elsewhere").rglob("*.lock"))

    @pytest.mark.slow
    def test_many_evictions_beside_a_model_in_use(self, folders: list[Path], cache_dir: Path, spawn: Spawn) -> None:
        child = spawn(HOLD.format(folder=str(folders[0])))
        child.read_until("held")
        content = (folders[1] / WEIGHTS).read_bytes()
        for _ in range(20):
            assert folders[0] not in {model.folder for model in cleanup_cache(0)}
            folders[1].mkdir(parents=True, exist_ok=True)
            (folders[1] / WEIGHTS).write_bytes(content)
        assert list_cached_models(cache_dir)[0].folder == folders[0]
        assert ensure_model("org/a", offline=True).snapshot.damaged_files(deep=True) == []
