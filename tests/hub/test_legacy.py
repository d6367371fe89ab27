"""Caches that earlier versions wrote: used where they are, moved over on request, and evicted like any other."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from golden_models import GOLDEN
from loopback_hub import REPO, WEIGHTS, Hub

from akidb_mlx_plugin.checkpoints.lookup import describe_model
from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub import download_model, ensure_model
from akidb_mlx_plugin.hub.cache import cache_size_gb, list_cached_models
from akidb_mlx_plugin.hub.eviction import cleanup_cache
from akidb_mlx_plugin.hub.locks import mark_in_use
from akidb_mlx_plugin.hub.migration import migrate_cache

pytest_plugins = ("hub_fixtures",)

FILES = {
    file.relative_to(GOLDEN / "bert" / "model").as_posix(): file.read_bytes()
    for file in (GOLDEN / "bert" / "model").rglob("*")
    if file.is_file()
}


def write_old(cache_dir: Path, commit: str, refs: dict[str, float], name: str = "") -> Path:
    """Write a model as version 0.1 did."""
    folder = cache_dir / REPO.replace("/", "--") / (name or commit[:12])
    records = []
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        records.append({"path": path, "size": len(content), "sha256": digest, "mtime_ns": 1})
    manifest = {"format": 1, "repo": REPO, "revision": commit, "refs": refs, "source": "a hub", "files": records}
    (folder / "akidb-model.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def old(hub: Hub, cache_dir: Path) -> Path:
    """The commit that the hub's branch is at."""
    return write_old(cache_dir, hub.add(REPO, FILES), {"main": time.time()})


class TestInPlace:
    def test_it_is_used_where_it_is(self, old: Path, hub: Hub, cache_dir: Path) -> None:
        model = ensure_model(REPO)
        assert (model.folder, model.repo) == (old, REPO)
        assert ensure_model(REPO, revision=model.revision[:8], offline=True).folder == old
        assert download_model(REPO) == old
        assert hub.requests == []
        assert [path.name for path in cache_dir.iterdir()] == ["org--tiny"]

    def test_its_fingerprint_is_that_of_a_download(self, old: Path, hub: Hub, tmp_path: Path) -> None:
        before = describe_model(REPO)
        assert before.fingerprint == describe_model(REPO, LoadOptions(cache_dir=tmp_path / "other")).fingerprint
        migrate_cache()
        assert describe_model(REPO).fingerprint == before.fingerprint

    def test_the_latest_of_several(self, old: Path, cache_dir: Path) -> None:
        now = time.time()
        newer = write_old(cache_dir, "b" * 40, {"main": now + 0.001, "v2": now})
        assert ensure_model(REPO).folder in (old, newer)
        write_old(cache_dir, "c" * 40, {"main": now + 1e6})
        time.sleep(0.002)
        assert ensure_model(REPO).folder == newer, "a time to come was noted by a wrong clock"
        assert ensure_model(REPO, revision="v2").folder == newer
        assert ensure_model(REPO, revision="c" * 7).revision == "c" * 40

    def test_a_newer_download_comes_before_it(self, old: Path, hub: Hub, cache_dir: Path) -> None:
        new = hub.add(REPO, {**FILES, "README.md": b"newer"})
        hub.requests.clear()
        folder = download_model(REPO, force=True)
        assert ensure_model(REPO).folder == folder
        assert ensure_model(REPO).revision == new
        assert hub.count("file") == hub.count("file", "README.md") == 1, "the other files were there"
        assert (folder / WEIGHTS).stat().st_ino == (old / WEIGHTS).stat().st_ino

    def test_damage_is_repaired_at_the_same_commit(self, old: Path, hub: Hub) -> None:
        commit = ensure_model(REPO).revision
        (old / WEIGHTS).write_bytes(b"")
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)
        hub.add(REPO, {**FILES, "README.md": b"newer"})
        assert ensure_model(REPO).revision == commit
        assert hub.count("file") == hub.count("file", WEIGHTS) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "repo": "org/tiny", "refs": []}'])
    def test_a_manifest_that_makes_no_sense(self, old: Path, hub: Hub, text: str) -> None:
        (old / "akidb-model.json").write_text(text)
        assert ensure_model(REPO).folder != old
        assert hub.count("file") == 0, "the files themselves are good"


class TestCache:
    def test_it_is_listed_and_evicted(self, old: Path, cache_dir: Path) -> None:
        (old.parent / ".incomplete-abc").mkdir()
        (old.parent / ".incomplete-abc" / "x").write_bytes(b"xx")
        (model,) = list_cached_models()
        assert (model.repo, model.folder, model.partial) == (REPO, old, False)
        whole = model.size_bytes + (old / "akidb-model.json").stat().st_size
        assert cache_size_gb() * 1e9 == pytest.approx(whole + 2)
        with mark_in_use(old):
            assert [model.folder.name for model in cleanup_cache(0)] == [".incomplete-abc"]
        assert [model.folder for model in cleanup_cache(0)] == [old]
        assert not old.parent.exists()

    def test_what_a_process_of_the_old_version_uses_stays(self, old: Path, cache_dir: Path) -> None:
        with mark_in_use(old):
            assert (cache_dir / ".locks" / f"org--tiny--{old.name}.lock").is_file()

    def test_of_a_copy_nothing_is_locked(self, old: Path, tmp_path: Path) -> None:
        copy = old.rename(tmp_path / "copy")
        mark_in_use(copy).close()
        assert not (tmp_path / ".locks").exists()


class TestMigration:
    def test_it_moves_and_copies_nothing(self, old: Path, hub: Hub, cache_dir: Path) -> None:
        inode = (old / WEIGHTS).stat().st_ino
        commit = ensure_model(REPO).revision
        os.utime(old / "akidb-model.json", (1e9, 1e9))
        (folder,) = migrate_cache()[0]
        assert folder == cache_dir / "models--org--tiny" / "snapshots" / commit
        assert list_cached_models()[0].last_used.timestamp() == 1e9
        assert (folder / WEIGHTS).stat().st_ino == inode
        assert not old.parent.exists()
        assert ensure_model(REPO).folder == download_model(REPO) == folder
        assert hub.requests == []
        hub.requests.clear()
        download_model(REPO, force=True)
        assert hub.count("file") == 0
        assert migrate_cache() == ([], {})

    def test_a_wheel(self, cache_dir: Path, hub: Hub) -> None:
        write_old(
            cache_dir, f"sha256:{ensure_model(GOLDEN / 'bert' / 'model').weights_digest}", {"main": 5.0}, "wheel-1.0"
        )
        before = ensure_model(REPO)
        migrate_cache()
        after = ensure_model(REPO, offline=True)
        assert (after.folder.name, after.revision) == ("wheel-1.0", before.revision)
        assert after.snapshot is not None
        assert after.snapshot.source == "a hub"

    def test_what_is_used_or_damaged_stays(self, old: Path) -> None:
        with mark_in_use(old):
            assert migrate_cache() == ([], {old: "a process uses it"})
        (old / WEIGHTS).write_bytes(bytes(len(FILES[WEIGHTS])))
        assert migrate_cache() == ([], {old: f"damaged: {WEIGHTS}"})
        assert ensure_model(REPO).folder == old
