"""Models from a hub: every failure of a download provoked on a loopback server."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loopback_hub import REPO, WEIGHTS, Fault, Hub, tiny_files

from akidb_mlx_plugin.errors import DownloadError, EmbeddingError, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub import download_model, ensure_model
from akidb_mlx_plugin.hub.cache import list_cached_models
from akidb_mlx_plugin.hub.files import digest_of_folder, select_files, sha256_of

if TYPE_CHECKING:
    pass


pytest_plugins = ("hub_fixtures",)


INDEX = "model.safetensors.index.json"


class TestDownload:
    def test_brings_what_a_checkpoint_needs_and_nothing_else(self, hub: Hub, cache_dir: Path) -> None:
        commit = hub.add(REPO, tiny_files())
        model = ensure_model(REPO)
        files = {file.relative_to(model.folder).as_posix() for file in model.folder.rglob("*") if file.is_file()}
        assert files == {
            *("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "README.md", WEIGHTS)
        }
        assert (model.folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]
        assert (model.name, model.repo, model.revision, model.spec) == (REPO, REPO, commit, None)
        assert model.folder == cache_dir / "models--org--tiny" / "snapshots" / commit

    @pytest.mark.usefixtures("cache_dir")
    def test_a_cached_model_makes_no_request(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        first = ensure_model(REPO)
        hub.requests.clear()
        hub.add(REPO, tiny_files(seed=1))
        assert ensure_model(REPO) == first
        assert ensure_model(REPO, revision=first.revision) == first
        assert ensure_model(REPO, revision=first.revision[:8]).folder == first.folder
        assert hub.requests == []

    @pytest.mark.usefixtures("cache_dir")
    def test_force_follows_the_branch_and_the_old_commit_stays(self, hub: Hub) -> None:
        old = hub.add(REPO, tiny_files())
        ensure_model(REPO)
        new = hub.add(REPO, tiny_files(seed=1))
        download_model(REPO, force=True)
        assert ensure_model(REPO).revision == new
        assert ensure_model(REPO, revision=old).revision == old
        download_model(REPO, revision=old, force=True)
        assert ensure_model(REPO).revision == new, "asking for a commit must not move the branch"

    @pytest.mark.usefixtures("cache_dir")
    def test_force_on_an_unchanged_branch_fetches_no_file(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        ensure_model(REPO)
        hub.requests.clear()
        download_model(REPO, force=True)
        assert (hub.count("revision"), hub.count("head"), hub.count("file")) == (1, 0, 0)

    def test_an_explicit_folder_of_the_cache(self, hub: Hub, tmp_path: Path) -> None:
        hub.add(REPO, tiny_files())
        folder = download_model(REPO, cache_dir=tmp_path / "elsewhere")
        assert folder.is_relative_to(tmp_path / "elsewhere")

    @pytest.mark.usefixtures("cache_dir")
    def test_token_and_endpoint_are_read_at_call_time(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub  # noqa: F401  its own constants are read when it is imported

        hub.add(REPO, tiny_files())
        with Hub() as other:
            other.add(REPO, tiny_files())
            monkeypatch.setenv("HF_ENDPOINT", other.url)
            monkeypatch.setenv("HF_TOKEN", "hf_secret")
            ensure_model(REPO)
            assert other.tokens() == {"Bearer hf_secret"}
        assert hub.requests == []

    @pytest.mark.usefixtures("cache_dir")
    def test_a_long_listing_comes_in_pages(self, hub: Hub) -> None:
        hub.page_size = 2
        hub.add(REPO, tiny_files())
        assert (ensure_model(REPO).folder / "1_Pooling" / "config.json").is_file()
        assert hub.count("tree") == 5

    @pytest.mark.usefixtures("cache_dir")
    def test_weights_on_another_host_get_no_token(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, tiny_files())
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        ensure_model(REPO)
        assert (hub.tokens(), hub.tokens(store=True)) == ({"Bearer hf_secret"}, {None})

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_a_password_in_the_endpoint_is_sent_and_never_printed(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.add(REPO, tiny_files())
        hub.fail("config.json", Fault(cut_after=3))
        monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("://", "://user:s3cr%21t@"))
        with caplog.at_level(logging.DEBUG):
            ensure_model(REPO)
            hub.fail("revision", Fault(status=401))
            with pytest.raises(DownloadError) as caught:
                download_model(REPO, force=True)
        assert hub.tokens() == {"Basic dXNlcjpzM2NyIXQ="}
        assert "s3cr" not in caplog.text + str(caught.value) + repr(caught.value.__cause__)

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_is_quiet_unless_progress_is_wanted(self, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
        hub.add(REPO, tiny_files())
        ensure_model(REPO)
        assert capfd.readouterr() == ("", "")
        hub.add("org/shown", tiny_files(seed=1))
        ensure_model("org/shown", show_progress=True)
        assert capfd.readouterr().out == ""

    @pytest.mark.usefixtures("cache_dir")
    def test_a_token_is_never_printed(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.add(REPO, tiny_files())
        hub.fail("revision", Fault(status=401))
        with caplog.at_level(logging.DEBUG):
            for token in ("hf_secret", "hf_secret\u00e9", "hf_secret\x01"):
                monkeypatch.setenv("HF_TOKEN", token)
                with pytest.raises(DownloadError) as caught:
                    ensure_model(REPO)
                assert "secret" not in str(caught.value)
        assert "secret" not in caplog.text


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("fault", "kind", "words"),
        [
            (Fault(status=401), DownloadError, "HF_TOKEN"),
            (Fault(status=403, headers={"X-Error-Code": "GatedRepo"}), DownloadError, "accept its license at http"),
            (Fault(status=401, headers={"X-Error-Code": "GatedRepo"}), DownloadError, "accept its license at http"),
            (Fault(status=403), DownloadError, "forbids"),
            (Fault(status=404, headers={"X-Error-Code": "RepoNotFound"}), ModelNotFoundError, "no such repository"),
            (Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}), ModelNotFoundError, "no revision 'main'"),
            (Fault(body=b"<html>"), DownloadError, "does not answer like a Hugging Face hub"),
            (Fault(body=b'{"sha": "../../x"}'), DownloadError, "does not answer like a Hugging Face hub"),
            (Fault(body=b'{"sha": "main"}'), DownloadError, "does not answer like a Hugging Face hub"),
            (Fault(body=b'{"sha": 5}'), DownloadError, "does not answer like a Hugging Face hub"),
            (Fault(body=b"[" * 100_000), DownloadError, "does not answer like a Hugging Face hub"),
        ],
    )
    def test_what_cannot_pass_is_asked_once(
        self, hub: Hub, cache_dir: Path, fault: Fault, kind: type[EmbeddingError], words: str
    ) -> None:
        hub.add(REPO, tiny_files())
        hub.fail("revision", fault)
        with pytest.raises(kind, match=words):
            ensure_model(REPO)
        assert len(hub.requests) == 1
        assert list_cached_models(cache_dir) == []

    @pytest.mark.usefixtures("cache_dir")
    def test_a_gated_file_is_asked_once(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(status=403, headers={"X-Error-Code": "GatedRepo"}, method="HEAD"))
        with pytest.raises(DownloadError, match="gated"):
            ensure_model(REPO)
        assert hub.count("file", WEIGHTS) == 0

    @pytest.mark.usefixtures("cache_dir")
    def test_a_repository_without_safetensors(self, hub: Hub) -> None:
        hub.add(REPO, {"config.json": b"{}", "pytorch_model.bin": b"x"})
        with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors but a pickle"):
            ensure_model(REPO)
        hub.add(REPO, {WEIGHTS: b"x"})
        with pytest.raises(ModelNotFoundError, match=r"config\.json"):
            ensure_model(REPO)
        assert hub.count("file") == 0

    @pytest.mark.parametrize(
        "endpoint",
        [
            "huggingface.co",
            "ftp://hub",
            "https://",
            "http://:80",
            "u:s3cret@hub",
            "http://u:s3cret@",
            "http://[::1",
            "http://hub:x",
        ],
    )
    @pytest.mark.usefixtures("cache_dir")
    def test_an_endpoint_that_is_none(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(InvalidInputError, match="HF_ENDPOINT") as caught:
            ensure_model(REPO)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("endpoint", ["http://hub name.invalid", "http://h\x01.invalid"])
    @pytest.mark.usefixtures("cache_dir")
    def test_an_endpoint_that_nothing_answers_at(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(DownloadError):
            ensure_model(REPO)

    @pytest.mark.usefixtures("cache_dir")
    def test_offline_makes_no_request(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.add(REPO, tiny_files())
        with pytest.raises(DownloadError, match="offline"):
            ensure_model(REPO, offline=True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            ensure_model(REPO)
        with pytest.raises(DownloadError, match="offline"):
            download_model(REPO, force=True)
        assert hub.requests == []
        assert ensure_model(REPO, offline=False).revision
        assert ensure_model(REPO, offline=True).revision


class TestLocalFolders:
    def test_is_returned_as_it_is(self, tmp_path: Path) -> None:
        for path, content in tiny_files().items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(content)
        model = ensure_model(tmp_path, trusted=False)
        assert (model.folder, model.repo, model.spec) == (tmp_path, str(tmp_path), None)
        assert model.revision == f"sha256:{digest_of_folder(tmp_path)}"
        assert download_model(str(tmp_path)) == tmp_path
        assert not list(tmp_path.rglob("akidb*"))

    def test_has_the_digest_of_the_same_weights_from_a_hub(self, hub: Hub, cache_dir: Path, tmp_path: Path) -> None:
        hub.add(REPO, tiny_files())
        cached = ensure_model(REPO)
        (tmp_path / "copy").mkdir()
        for name in ("config.json", WEIGHTS):
            shutil.copy(cached.folder / name, tmp_path / "copy")
        assert ensure_model(tmp_path / "copy").weights_digest == cached.weights_digest
        assert sha256_of(cached.folder / WEIGHTS).startswith(cached.weights_digest)
        assert len(cached.weights_digest) == 16

    def test_of_several_weight_files(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name / "2_Dense").mkdir(parents=True)
            (tmp_path / name / "config.json").touch()
            (tmp_path / name / WEIGHTS).write_bytes(b"same")
            (tmp_path / name / "2_Dense" / WEIGHTS).write_bytes(name.encode())
        assert ensure_model(tmp_path / "a").weights_digest != ensure_model(tmp_path / "b").weights_digest

    def test_that_is_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
            ensure_model(tmp_path)
        (tmp_path / "config.json").touch()
        with pytest.raises(ModelNotFoundError, match="safetensors"):
            _ = ensure_model(tmp_path).revision


@pytest.mark.parametrize(
    ("paths", "weights"),
    [
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.safetensors", INDEX], ["model.safetensors", INDEX]),
        (["weights.00.safetensors", "weights.01.safetensors"], ["weights.00.safetensors", "weights.01.safetensors"]),
        (
            [
                "model-1-of-2.safetensors",
                "model-2-of-2.safetensors",
                "model.safetensors.index.json",
                "model.safetensors",
            ],
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors", INDEX],
        ),
        (["model.safetensors", "2_Dense/model.safetensors"], ["2_Dense/model.safetensors", "model.safetensors"]),
        (["model.safetensors", "onnx/model.safetensors", "../x.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "vocab.txt", "tokenizer.model"], ["model.safetensors", "tokenizer.model", "vocab.txt"]),
        (["model.safetensors", "vocab.txt", "tokenizer.json"], ["model.safetensors", "tokenizer.json"]),
        (["0_T/vocab.txt", "0_T/model.safetensors"], ["0_T/model.safetensors", "0_T/vocab.txt"]),
        (["0_T/tokenizer.json", "0_T/vocab.txt"], ["0_T/tokenizer.json"]),
        (["1_Pooling/config.json", "1_Pooling/../config.json", "a/1_Pooling/config.json"], ["1_Pooling/config.json"]),
    ],
)
def test_select_files(paths: list[str], weights: list[str]) -> None:
    assert select_files(paths) == weights
