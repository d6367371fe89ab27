"""The machine's ordinary Hugging Face cache: what other tools have downloaded is used where it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_models import GOLDEN
from loopback_hub import REPO, WEIGHTS, Hub
from processes import run_python

from akidb_mlx_plugin.checkpoints.lookup import describe_model
from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub import download_model, ensure_model
from akidb_mlx_plugin.hub.cache import cache_size_gb, list_cached_models, list_shared_models
from akidb_mlx_plugin.hub.eviction import cleanup_cache
from akidb_mlx_plugin.hub.snapshots import shared_cache_dir

pytest_plugins = ("hub_fixtures",)

MODEL = GOLDEN / "bert" / "model"
Bring = Callable[..., Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return everything below a folder with what a write would change; links are not followed."""
    stats = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture
def bring(hub: Hub, cache_dir: Path) -> Bring:
    """Have huggingface_hub itself put a repository into its cache, and forget the requests."""
    from huggingface_hub import snapshot_download

    def put(repo: str = REPO, files: dict[str, bytes] | None = None, **options: object) -> Path:
        hub.add(repo, files or files_of(MODEL))
        folder = snapshot_download(repo, cache_dir=shared_cache_dir(), endpoint=hub.url, **options)
        hub.requests.clear()
        return Path(folder)

    return put


@pytest.fixture
def unlisted(bring: Bring) -> Bring:
    """The same as versions of huggingface_hub before 2 leave it, and those who ask for single files."""

    def put(*arguments: object, **options: object) -> Path:
        folder = bring(*arguments, **options)
        shutil.rmtree(folder.parent.parent / "trees")
        return folder

    return put


class TestInPlace:
    def test_nothing_is_asked_copied_or_written(self, bring: Bring, hub: Hub, cache_dir: Path) -> None:
        folder = bring()
        before = state_of(shared_cache_dir())
        model = ensure_model(REPO)
        assert (model.folder, model.revision) == (folder, folder.name)
        assert ensure_model(REPO, revision=folder.name[:8], offline=True).folder == folder
        assert download_model(REPO) == folder
        assert cleanup_cache(0) == list_cached_models() == []
        assert hub.requests == []
        assert not cache_dir.exists()
        assert state_of(shared_cache_dir()) == before

    def test_the_fingerprint_is_that_of_a_download(self, bring: Bring, hub: Hub, tmp_path: Path) -> None:
        bring()
        shared = describe_model(REPO)
        hub.add("org/other", files_of(MODEL))
        downloaded = describe_model("org/other")
        assert shared.fingerprint == downloaded.fingerprint
        assert shared.fingerprint == describe_model(MODEL).fingerprint

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("names", "value"),
        [
            (["HF_HUB_CACHE"], "{0}/x"),
            (["HUGGINGFACE_HUB_CACHE"], "{0}/x"),
            (["HF_HOME"], "{0}"),
            (["XDG_CACHE_HOME"], "{0}"),
            ([], "~"),
        ],
    )
    def test_where_it_is_is_read_when_it_is_asked(
        self, names: list[str], value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name in names:
            monkeypatch.setenv(name, value.format(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
        expected = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert str(shared_cache_dir()) == expected.stdout.strip()

    @pytest.mark.slow
    def test_the_models_own_cache_comes_first(self, bring: Bring, hub: Hub, cache_dir: Path) -> None:
        hub.add(REPO, files_of(MODEL))
        own = ensure_model(REPO).folder
        bring(files={**files_of(MODEL), "README.md": b"newer"})
        assert ensure_model(REPO).folder == own
        assert own.is_relative_to(cache_dir)

    @pytest.mark.slow
    def test_a_repair_takes_the_same_commit_from_it(self, bring: Bring, hub: Hub) -> None:
        hub.add(REPO, files_of(MODEL))
        own = ensure_model(REPO).folder
        (own / WEIGHTS).resolve().write_bytes(b"")
        shared = bring()
        assert ensure_model(REPO, offline=True).folder == shared
        bring(files={**files_of(MODEL), "README.md": b"newer"})
        shutil.rmtree(shared)
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)

    def test_the_same_folder_for_both(self, bring: Bring, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = bring()
        monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", str(shared_cache_dir()))
        assert ensure_model(REPO).folder == folder
        assert cache_size_gb() == 0
        assert cleanup_cache(0) == []
        assert folder.exists()

    def test_a_registered_model_must_have_the_registered_weights(self, bring: Bring, hub: Hub) -> None:
        bring("sentence-transformers/all-MiniLM-L6-v2")
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model("minilm-l6-v2", offline=True)

    def test_it_is_listed_as_what_it_is(self, bring: Bring) -> None:
        folder = bring()
        bring("org/data", {"readme.txt": b"no model"})
        assert [(model.repo, model.folder, model.shared) for model in list_shared_models()] == [(REPO, folder, True)]


ADAPTERS = """
import sys, chromadb, lancedb
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings, create_table
from akidb_mlx_plugin import EmbeddingService

for i, name in enumerate(("minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2")):
    function = MLXEmbeddingFunction(model=name)
    collection = chromadb.EphemeralClient().create_collection(f"docs{i}", embedding_function=function)
    collection.add(ids=["a", "b"], documents=["a cat", "the law of the sea"])
    assert collection.query(query_texts=["kitten"], n_results=1)["ids"] == [["a"]]
    table = create_table(lancedb.connect(sys.argv[1]), f"docs{i}", MLXEmbeddings.create(name=name))
    table.add([{"id": "a", "text": "a cat"}, {"id": "b", "text": "the law of the sea"}])
    assert table.search("kitten").limit(1).to_list()[0]["id"] == "a"
    with EmbeddingService(name) as service:
        print(service.model_info().fingerprint)
"""


@pytest.mark.slow
def test_all_adapters_use_it_offline_by_name_and_by_repository(
    hub: Hub, minilm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    expected = describe_model("minilm-l6-v2").fingerprint
    repo = "sentence-transformers/all-MiniLM-L6-v2"
    hub.add(repo, files_of(minilm_dir))
    snapshot_download(repo, cache_dir=shared_cache_dir(), endpoint=hub.url)
    before = state_of(shared_cache_dir())
    monkeypatch.setenv("AKIDB_MODEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    printed = run_python(ADAPTERS, str(tmp_path / "lancedb"))
    assert printed.split() == [expected] * 2
    assert state_of(shared_cache_dir()) == before
    assert not (tmp_path / "cache").exists()
    assert hub.requests == []


class TestDamage:
    def test_a_cut_file_is_not_used(self, bring: Bring, hub: Hub, cache_dir: Path) -> None:
        folder = bring()
        weights = (folder / WEIGHTS).resolve()
        weights.write_bytes(weights.read_bytes()[:-1])
        model = ensure_model(REPO)
        assert model.folder.is_relative_to(cache_dir)
        assert hub.count("file") == hub.count("file", WEIGHTS) == 1, "the others are taken from there"
        assert ensure_model(REPO, revision=folder.name).folder == model.folder

    def test_an_altered_file_is_found_by_download(self, bring: Bring, hub: Hub, cache_dir: Path) -> None:
        folder = bring()
        weights = (folder / WEIGHTS).resolve()
        weights.write_bytes(bytes(weights.stat().st_size))
        assert ensure_model(REPO).folder == folder, "which reads sizes alone"
        assert download_model(REPO).is_relative_to(cache_dir)
        assert hub.count("file", WEIGHTS) == 1

    def test_what_is_taken_from_there_is_linked(self, bring: Bring, hub: Hub) -> None:
        folder = bring(allow_patterns=["*.json", WEIGHTS], files={**files_of(MODEL), "README.md": b"# a card"})
        model = ensure_model(REPO)
        assert model.folder != folder
        assert (model.folder / WEIGHTS).stat().st_ino == (folder / WEIGHTS).stat().st_ino
        assert hub.count("file") == hub.count("file", "README.md") == 1


class TestBroughtInPart:
    """Other tools leave out what they do not need, and some keep no listing of what there is."""

    def test_without_its_card_it_is_used_where_no_hub_is(
        self, bring: Bring, hub: Hub, cache_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = bring(ignore_patterns="README.md", files={**files_of(MODEL), "README.md": b"# a card"})
        assert ensure_model(REPO, offline=True).folder == folder
        assert "is a partial download" in caplog.text
        with monkeypatch.context() as patch:
            patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
            assert ensure_model(REPO).folder == folder
        assert ensure_model(REPO).folder.is_relative_to(cache_dir)

    @pytest.mark.slow
    @pytest.mark.parametrize("left_out", [WEIGHTS, "config.json", "tokenizer.json", "modules.json", "1_Pooling/*"])
    def test_without_what_it_needs_it_is_not(self, bring: Bring, left_out: str) -> None:
        bring(ignore_patterns=left_out)
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)

    def test_one_without_a_listing_is_used_if_it_is_consistent(self, unlisted: Bring, hub: Hub) -> None:
        folder = unlisted()
        assert ensure_model(REPO).folder == folder
        assert download_model(REPO) == folder
        weights = (folder / WEIGHTS).resolve()
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)

    @pytest.mark.slow
    def test_one_that_was_copied_without_its_links(self, unlisted: Bring) -> None:
        """As file systems without links have it."""
        folder = unlisted()
        for file in [file for file in folder.rglob("*") if file.is_symlink()]:
            file.resolve().rename(file)
        model = ensure_model(REPO)
        assert (model.folder, model.weights_digest) == (folder, ensure_model(folder).weights_digest)
        assert download_model(REPO) == folder
        (folder / "README.md").symlink_to("nothing")
        assert ensure_model(REPO).folder != folder

    @pytest.mark.slow
    @pytest.mark.parametrize("left_out", [WEIGHTS, "config.json", "tokenizer.json", "1_Pooling/*"])
    def test_one_without_a_listing_that_is_not_consistent(self, unlisted: Bring, left_out: str) -> None:
        unlisted(ignore_patterns=left_out)
        with pytest.raises(DownloadError, match="not complete"):
            ensure_model(REPO, offline=True)

    def test_without_a_pipeline_it_may_be_that_it_has_none(self, unlisted: Bring, hub: Hub, cache_dir: Path) -> None:
        files = {path: content for path, content in files_of(MODEL).items() if "/" not in path}
        del files["modules.json"]
        folder = unlisted(files=files)
        assert ensure_model(REPO, offline=True).folder == folder
        (folder.parent.parent / ".no_exist" / folder.name).mkdir(parents=True)
        (folder.parent.parent / ".no_exist" / folder.name / "modules.json").touch()
        assert ensure_model(REPO).folder == folder
        assert hub.requests == []
