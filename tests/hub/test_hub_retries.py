"""Models from a hub: every failure of a download provoked on a loopback server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loopback_hub import REPO, WEIGHTS, Fault, Hub, tiny_files

from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub import client, ensure_model, retries
from akidb_mlx_plugin.hub.cache import list_cached_models

if TYPE_CHECKING:
    pass


pytest_plugins = ("hub_fixtures",)


class TestRetries:
    @pytest.mark.slow
    @pytest.mark.parametrize("status", [429, 500, 503])
    @pytest.mark.parametrize("part", ["revision", "tree", "config.json", WEIGHTS])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.usefixtures("cache_dir")
    def test_what_may_pass_is_asked_three_times(self, hub: Hub, part: str, status: int, method: str) -> None:
        hub.add(REPO, {path: content for path, content in tiny_files().items() if not path.startswith("1_")})
        hub.fail(part, *[Fault(status=status, method=method)] * 2)
        assert ensure_model(REPO).folder.is_dir()

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["revision", "tree", WEIGHTS])
    @pytest.mark.usefixtures("cache_dir")
    def test_three_attempts_and_no_more(self, hub: Hub, part: str) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(part, *[Fault(status=503)] * 9)
        with pytest.raises(DownloadError, match=r"503.*tried 3 times"):
            ensure_model(REPO)
        assert sum(part in request.path and request.route != "head" for request in hub.requests) == 3

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["revision", WEIGHTS])
    @pytest.mark.usefixtures("cache_dir")
    def test_retry_after_is_honoured(self, hub: Hub, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []
        monkeypatch.setattr(retries.time, "sleep", waits.append)
        hub.add(REPO, tiny_files())
        hub.fail(
            part,
            Fault(status=429, headers={"Retry-After": "7"}),
            Fault(status=429, headers={"RateLimit": '"api";r=0;t=9'}),
        )
        ensure_model(REPO)
        assert waits == [7.0, 9.0]

    @pytest.mark.parametrize("part", ["revision", WEIGHTS])
    @pytest.mark.usefixtures("cache_dir")
    def test_too_long_a_wait_is_reported_instead(self, hub: Hub, part: str) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(part, Fault(status=429, headers={"Retry-After": "3600"}))
        with pytest.raises(DownloadError, match="asks for a wait of 3600 seconds"):
            ensure_model(REPO)

    def test_the_waits_grow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []
        monkeypatch.setattr(retries.time, "sleep", waits.append)

        def fail() -> None:
            raise retries.TransientError("no")

        with pytest.raises(retries.TransientError, match="tried 3 times"):
            retries.with_retries(fail)
        assert waits == [1.0, 2.0]

    def test_a_date_to_wait_for(self) -> None:
        assert retries._asked_wait({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
        assert retries._asked_wait({"Retry-After": "soon"}) is None
        assert retries._asked_wait({"Retry-After": "\u00b2"}) is None
        assert retries._asked_wait({}) is None

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_a_cut_connection_is_resumed(self, hub: Hub) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(cut_after=100_000))
        model = ensure_model(REPO)
        # huggingface_hub takes up what it has read in whole pieces of 10 MB, here none.
        assert hub.count("file", WEIGHTS) == 2
        assert (model.folder / WEIGHTS).read_bytes() == tiny_files()[WEIGHTS]

    def test_a_connection_cut_each_time(self, hub: Hub, cache_dir: Path, no_sleep: None) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, *[Fault(cut_after=50_000)] * 20)
        with pytest.raises(DownloadError, match=r"closed the connection.*tried 3 times"):
            ensure_model(REPO)
        assert list_cached_models(cache_dir) == []
        assert [model.partial for model in list_cached_models(cache_dir, include_partial=True)] == [True]
        assert hub.count("file", WEIGHTS) == 18, "six by huggingface_hub, three times"

    @pytest.mark.usefixtures("cache_dir")
    def test_what_came_whole_is_kept(self, hub: Hub, no_sleep: None) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, *[Fault(status=503)] * 3)
        with pytest.raises(DownloadError):
            ensure_model(REPO)
        hub.requests.clear()
        ensure_model(REPO)
        assert hub.count("file") == hub.count("file", WEIGHTS) == 1

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_a_hub_that_hangs(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(stall_after=100_000))
        ensure_model(REPO)
        assert hub.count("file", WEIGHTS) == 2

    @pytest.mark.usefixtures("cache_dir", "hub")
    def test_a_hub_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://user:pass@127.0.0.1:9")
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
            ensure_model(REPO)
        assert "pass" not in str(caught.value)

    @pytest.mark.slow
    @pytest.mark.usefixtures("cache_dir")
    def test_a_hub_that_does_not_answer(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "ANSWER_S", 0.3)
        hub.add(REPO, tiny_files())
        hub.fail("revision", Fault(stall_after=0))
        with pytest.raises(DownloadError, match=r"did not respond"):
            ensure_model(REPO)
        assert hub.count("revision") == 1

    def test_a_deadline(self, hub: Hub) -> None:
        with pytest.raises(retries.TransientError, match="too late"):
            retries.within_deadline(0.01, hub.release.wait, "too late")
        with pytest.raises(TimeoutError, match="own"):
            retries.within_deadline(60, _time_out, "too late")
        assert retries.within_deadline(60, lambda: 5, "too late") == 5


def _time_out() -> None:
    raise TimeoutError("own")


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this package nor huggingface_hub waits between attempts."""
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
