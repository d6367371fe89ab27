"""A Hugging Face hub on 127.0.0.1 for the tests, with every way to fail that a test asks for.

Small files are served by the hub itself, safetensors by a store at another address, as those of Git LFS are.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "org/tiny"
WEIGHTS = "model.safetensors"
WEIGHTS_BYTES = 300_000

_ROUTES = (
    ("revision", re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)")),
    ("tree", re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")),
    ("file", re.compile(r"(/store)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")),
)


def tiny_files(seed: int = 0, size: int = WEIGHTS_BYTES) -> dict[str, bytes]:
    """Return the files of a repository as hubs have them: what is needed, and what is not."""
    weights = random.Random(seed).randbytes(size)
    return {
        "config.json": b'{"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 9}',
        "tokenizer.json": b'{"version": "1.0"}',
        "modules.json": b'[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        b' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]',
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        WEIGHTS: weights,
        "README.md": b"# tiny",
        "pytorch_model.bin": weights,
        "onnx/model.onnx": weights,
        "openvino/openvino_model.bin": weights,
    }


@dataclass
class Fault:
    """One answer other than the right one.

    Attributes:
        status: answer with this status and nothing else.
        headers: sent with it.
        cut_after: close the connection after this many bytes of the body.
        stall_after: send this many bytes, then nothing until `Hub.release`.
        corrupt: flip the first byte of the body.
        body: another body altogether, with a length that fits it.
        ignore_range: send the whole file whatever was asked for.
        method: of the requests it is for.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    corrupt: bool = False
    body: bytes | None = None
    ignore_range: bool = False
    method: str = "GET"


@dataclass(frozen=True)
class Request:
    """What was asked: route "revision", "tree", "file" or, for the headers of a file alone, "head"."""

    route: str
    path: str
    range: str | None
    token: str | None
    agent: str


class Hub:
    """The server. Faults are taken one per matching request, in order, until none is left."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.sent_bytes = 0
        self.page_size = 1000
        self.release = threading.Event()
        self.stalled = threading.Event()
        self._files: dict[tuple[str, str], dict[str, bytes]] = {}
        self._refs: dict[tuple[str, str], str] = {}
        self._faults: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        # The hub, and the store.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self)) for _ in range(2)]
        # By another name, as versions of huggingface_hub differ in whether a port makes another host.
        hosts = zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        self.url, self.store = (f"http://{host}:{server.server_address[1]}" for host, server in hosts)

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch and return the commit."""
        digest = hashlib.sha1(repo.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        commit = digest.hexdigest()
        self._files[repo, commit] = dict(files)
        self._refs[repo, branch] = self._refs[repo, commit] = commit
        return commit

    def fail(self, part: str, *faults: Fault) -> None:
        """Answer the next requests whose address contains `part` with these faults, one each."""
        self._faults += [(part, fault) for fault in faults]

    def count(self, route: str, path: str = "") -> int:
        """Return how often a route, or a file, was asked for."""
        return sum(request.route == route and request.path.endswith(path) for request in self.requests)

    def tokens(self, *, store: bool = False) -> set[str | None]:
        """Return what came as authorization to the hub, or to its store."""
        return {request.token for request in self.requests if request.path.startswith("/store/") == store}

    def take_fault(self, method: str, address: str) -> Fault:
        """Return the fault for a request, or one that changes nothing."""
        with self._lock:
            for entry in self._faults:
                if entry[0] in address and entry[1].method == method:
                    self._faults.remove(entry)
                    return entry[1]
        return Fault()

    def tree(self, repo: str, commit: str) -> list[dict[str, Any]]:
        """Return the listing of a commit as the hub's API gives it: safetensors in Git LFS, the rest not."""
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "1_Pooling", "oid": "0", "size": 0}]
        for path, content in self._files[repo, commit].items():
            entry: dict[str, Any] = {"type": "file", "path": path, "oid": _git_id(content), "size": len(content)}
            if path.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    def resolve(self, repo: str, revision: str) -> str | None:
        """Return the commit of a revision."""
        return self._refs.get((repo, revision))

    def has(self, repo: str) -> bool:
        """Return whether there is such a repository."""
        return any(known == repo for known, _ in self._files)

    def content(self, repo: str, commit: str, path: str) -> bytes | None:
        """Return a file."""
        return self._files[repo, commit].get(path)


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Header and body leave in two writes, which Nagle's algorithm would hold apart by 40 ms.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            address = unquote(urlsplit(self.path).path)
            route, match = next(((name, m) for name, rule in _ROUTES if (m := rule.fullmatch(address))), ("", None))
            route = "head" if self.command == "HEAD" else route
            headers = (self.headers.get(name) for name in ("Range", "Authorization"))
            hub.requests.append(Request(route, address, *headers, self.headers.get("User-Agent", "")))
            fault = hub.take_fault(self.command, address)
            if fault.status is not None:
                self._answer(fault.status, b"", fault.headers)
            elif match is None:
                self._answer(404, b"")
            elif not hub.has(match["repo"]):
                self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif (commit := hub.resolve(match["repo"], match["revision"])) is None:
                self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif route == "revision":
                self._send(json.dumps({"id": match["repo"], "sha": commit}).encode(), fault)
            elif route == "tree":
                self._send_page(hub.tree(match["repo"], commit), fault)
            elif (content := hub.content(match["repo"], commit, match["path"])) is None:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                self._send_file(address, commit, content, fault)

        def _send_file(self, address: str, commit: str, content: bytes, fault: Fault) -> None:
            """Send a file, or where a file of Git LFS is to be had, with its digest either way."""
            headers = {"X-Repo-Commit": commit}
            if address.endswith(".safetensors") and not address.startswith("/store/"):
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                self._answer(302, b"", {**headers, "Location": f"{hub.store}/store{self.path}", **fault.headers})
                return
            headers["ETag"] = f'"{_git_id(content)}"'
            self._send(content, fault, self.headers.get("Range"), {**headers, **fault.headers})

        def _send_page(self, entries: list[dict[str, Any]], fault: Fault) -> None:
            begin = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
            end = begin + hub.page_size
            address = f"{hub.url}{urlsplit(self.path).path}?recursive=true&cursor={end}"
            more = {"Link": f'<{address}>; rel="next"'} if end < len(entries) else {}
            self._send(json.dumps(entries[begin:end]).encode(), fault, headers=more)

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self._write(body)

        def _send(
            self, content: bytes, fault: Fault, asked: str | None = None, headers: Mapping[str, str] | None = None
        ) -> None:
            content = content if fault.body is None else fault.body
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not fault.ignore_range else 0
            body = content[start:]
            if fault.corrupt:
                body = bytes([body[0] ^ 1]) + body[1:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            stop = fault.cut_after if fault.cut_after is not None else fault.stall_after
            self._write(body[:stop])
            if fault.stall_after is not None:
                hub.stalled.set()
                hub.release.wait()
                self._write(body[stop:])
            if fault.cut_after is not None:
                self.close_connection = True

        def _write(self, body: bytes) -> None:
            if self.command == "HEAD":
                return
            try:
                self.wfile.write(body)
                self.wfile.flush()
                hub.sent_bytes += len(body)
            except OSError:
                self.close_connection = True

    return Handler
