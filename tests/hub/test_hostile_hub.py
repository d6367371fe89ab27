"""A hub that means harm: listings without an end, tokens asked for elsewhere, files that point out of the cache."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import REPO, WEIGHTS, Fault, Hub, tiny_files

from akidb_mlx_plugin.errors import DownloadError
from akidb_mlx_plugin.hub import client, ensure_model
from akidb_mlx_plugin.hub.cache import list_cached_models

pytest_plugins = ("hub_fixtures",)

COMMIT = "a" * 40
Serve = Callable[[Callable[[BaseHTTPRequestHandler], None]], str]


@pytest.fixture
def serve(hub: Hub, cache_dir: Path) -> Iterator[Serve]:
    """Start a hub that knows its commit, and answers whatever else in a test's own way; returns its address."""
    servers = []

    def start(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                if "/revision/" in self.path:
                    send(self, json.dumps({"sha": COMMIT}).encode())
                else:
                    answer(self)

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(request: BaseHTTPRequestHandler, body: bytes, **headers: str) -> None:
    request.send_response(200)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def drip(request: BaseHTTPRequestHandler, piece: bytes, pause_s: float) -> None:
    """Send pieces until the client has had enough."""
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    try:
        while True:
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(pause_s)
    except OSError:
        request.close_connection = True


class TestListings:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "answer",
        [
            lambda request: send(request, gzip.compress(b" " * (64 << 20)), Content_Encoding="gzip"),
            lambda request: send(request, b"[]", Link=f'<{request.path}x>; rel="next"'),
            lambda request: drip(request, b" " * (1 << 20), 0),
            lambda request: drip(request, b" ", 0.05),
        ],
        ids=["packed", "pages", "endless", "slow"],
    )
    def test_one_that_does_not_end(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler], None]
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", serve(answer))
        monkeypatch.setattr(client, "LISTING_S", 2.0)
        with pytest.raises(DownloadError, match="file listing exceeds"):
            ensure_model(REPO)

    def test_one_that_goes_on_elsewhere_is_not_followed(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str | None] = []
        other = serve(lambda request: asked.append(request.headers["Authorization"]))
        url = serve(lambda request: send(request, b"[]", Link=f'<{other}/page2>; rel="next"'))
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with pytest.raises(DownloadError, match="continues at"):
            ensure_model(REPO)
        assert asked == []

    def test_a_redirect_elsewhere_takes_no_token(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str | None] = []

        def note(request: BaseHTTPRequestHandler) -> None:
            asked.append(request.headers["Authorization"])
            send(request, b"[]")

        def redirect(request: BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", f"{other}/x")
            request.send_header("Content-Length", "0")
            request.end_headers()

        other = serve(note)
        monkeypatch.setenv("HF_ENDPOINT", serve(redirect))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with pytest.raises(LookupError, match="not a checkpoint"):
            ensure_model(REPO)
        assert asked == [None]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "entry",
        [
            {"path": "../../x.json"},
            {"path": "/etc/x.json"},
            {"path": "a//x.json"},
            {"path": 5},
            {"size": -1},
            {"size": "1"},
            {"size": None},
            {"oid": "../../x"},
            {"oid": 5},
            {"oid": "f" * 41},
            {"lfs": {"oid": "../x", "size": 1}},
            {"lfs": {"size": 1}},
            {"lfs": "x"},
            {"type": None},
        ],
        ids=str,
    )
    def test_a_field_that_makes_no_sense(
        self, serve: Serve, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any]
    ) -> None:
        listing = [{"type": "file", "path": "config.json", "size": 2, "oid": "f" * 40, **entry}]
        monkeypatch.setenv("HF_ENDPOINT", serve(lambda request: send(request, json.dumps(listing).encode())))
        with pytest.raises((DownloadError, LookupError), match=r"does not answer like a|not a checkpoint"):
            ensure_model(REPO)
        assert list_cached_models(cache_dir) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "body", [b"{}", b"5", b"null", b'["x"]', b"[[", b"[" * 100_000, b"\xff", b"[" + b"9" * 5000]
    )
    def test_a_listing_that_is_none(self, serve: Serve, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
        monkeypatch.setenv("HF_ENDPOINT", serve(lambda request: send(request, body)))
        with pytest.raises((DownloadError, LookupError), match=r"does not answer like a|not a checkpoint"):
            ensure_model(REPO)


class TestFiles:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Linked-Etag": '"../../../escaped"'},
            {"X-Linked-Etag": '"/tmp/escaped"'},
            {"X-Linked-Etag": '".."'},
            {"X-Repo-Commit": "../../escaped"},
        ],
        ids=str,
    )
    def test_an_etag_that_leads_out_of_the_cache(self, hub: Hub, tmp_path: Path, headers: dict[str, str]) -> None:
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(headers=headers, method="HEAD"))
        with pytest.raises(DownloadError, match="not a digest"):
            ensure_model(REPO, cache_dir=tmp_path / "deep" / "down" / "cache")
        assert not list(tmp_path.rglob("*escaped*"))

    @pytest.mark.slow
    def test_a_file_that_does_not_end(self, hub: Hub, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
        hub.add(REPO, tiny_files())
        hub.fail(WEIGHTS, Fault(body=bytes(80 << 20)))
        hub.fail(WEIGHTS, Fault(headers={"X-Linked-Size": str(80 << 20)}, method="HEAD"))
        with pytest.raises(DownloadError, match="than the 300000 bytes that it announced"):
            ensure_model(REPO)
        assert not list(cache_dir.rglob("*.incomplete"))

    def test_others_requests_are_not_touched(self, hub: Hub, cache_dir: Path) -> None:
        from huggingface_hub import get_session

        hub.add(REPO, tiny_files())
        ensure_model(REPO)
        assert get_session().get(f"{hub.url}/nothing").status_code == 404
