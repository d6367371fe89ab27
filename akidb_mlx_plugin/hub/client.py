"""Query a Hugging Face hub through huggingface_hub, within limits, and explain its errors.

huggingface_hub downloads the files. Its listings are not used: they are unbounded, and send the token wherever the next
page is.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from akidb_mlx_plugin._version import __version__
from akidb_mlx_plugin.errors import DownloadError, EmbeddingError, InvalidInputError
from akidb_mlx_plugin.hub.files import FileEntry, parse_files
from akidb_mlx_plugin.hub.retries import RefusedError, explain, with_retries, within_deadline

# Timeout for a hub's first response.
ANSWER_S = 8.0
LISTING_S = 30.0
LISTING_BYTES = 32 << 20
LISTING_PAGES = 100

_DEFAULT_ENDPOINT = "https://huggingface.co"
_AGENT = "akidb-mlx-plugin"
# The commit and the ETag become file names. huggingface_hub would look up a commit in any other form again.
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_NAME = re.compile(r"(W/)?\"?\w[\w.-]*\"?")
_XET_HASH = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class Hub:
    """A hub's address, without any password in it, and the headers to send."""

    endpoint: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def host(self) -> str:
        """Name and port."""
        return urlsplit(self.endpoint).netloc


@dataclass(frozen=True)
class RemoteSnapshot:
    """A repository at one commit: its files as huggingface_hub records them, and as this package does."""

    commit: str
    listing: Mapping[str, Mapping[str, Any]]
    files: Sequence[FileEntry]


def is_offline() -> bool:
    """Return whether the hub's own variables, as currently set, forbid requests."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def find_hub() -> Hub:
    """Return the hub: HF_ENDPOINT as currently set, else the public one, with its token or password.

    Raises:
        InvalidInputError: HF_ENDPOINT is not an http address.
        DownloadError: the token cannot be sent.
    """
    from akidb_mlx_plugin.progress import import_tqdm_quietly

    import_tqdm_quietly()
    from huggingface_hub import __version__ as hub_version
    from huggingface_hub import constants, get_token

    given = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _DEFAULT_ENDPOINT
    scheme, slashes, rest = given.partition("://")
    credentials, _, place = rest.rpartition("@")
    endpoint = f"{scheme}{slashes}{place}"
    if not _is_address(endpoint):
        shown = given.rpartition("@")[2]
        raise InvalidInputError(f"HF_ENDPOINT must be an address like {_DEFAULT_ENDPOINT}, got {shown!r}")
    headers = {"user-agent": f"{_AGENT}/{__version__}; hf_hub/{hub_version}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if credentials:
        headers["authorization"] = f"Basic {base64.b64encode(unquote(credentials).encode()).decode()}"
    elif token:
        if not _TOKEN.fullmatch(token):
            # The HTTP library would reject it too, but print it.
            raise DownloadError("HF_TOKEN contains characters that are not valid in a token; copy it again")
        headers["authorization"] = f"Bearer {token}"
    return Hub(endpoint, headers)


def _is_address(text: str) -> bool:
    try:
        address = urlsplit(text)
        # An invalid port raises only when it is read.
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        return False


def list_remote(hub: Hub, repo: str, revision: str) -> RemoteSnapshot:
    """Resolve a branch, tag or commit and list the files of that commit.

    Raises:
        ModelNotFoundError: no such repository or revision.
        TransientError: the hub cannot be reached, or cannot answer now.
        DownloadError: the hub denies access, or its answer is malformed.
    """
    api = f"{hub.endpoint}/api/models/{repo}"

    def ask(url: str, limits: _Limits) -> tuple[Any, str | None]:
        try:
            return _get_json(hub, url, limits)
        except Exception as error:
            raise explain(error, hub.endpoint, repo, revision) from error

    def first() -> tuple[Any, str | None]:
        late = f"{hub.host} did not respond within {ANSWER_S:g} seconds"
        return within_deadline(ANSWER_S, lambda: ask(f"{api}/revision/{quote(revision, safe='')}", _Limits()), late)

    try:
        commit = with_retries(first)[0]["sha"]
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"commit {commit!r}")
        listing: dict[str, Mapping[str, Any]] = {}
        limits = _Limits()
        url: str | None = f"{api}/tree/{commit}?recursive=true"
        while url:
            page, url = with_retries(lambda url=url: ask(url, limits))  # type: ignore[misc]
            listing |= {entry["path"]: _as_listed(entry) for entry in page if entry["type"] == "file"}
        return RemoteSnapshot(commit, listing, parse_files(listing))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, EmbeddingError):
            raise
        raise DownloadError(
            f"{hub.host} does not answer like a Hugging Face hub ({error!r:.200}); check HF_ENDPOINT and the proxy"
        ) from error


def download_files(
    hub: Hub, repo: str, commit: str, files: Sequence[FileEntry], cache_dir: Path, *, show_progress: bool
) -> None:
    """Download files into a cache with huggingface_hub, each at its full size but with its content unverified.

    Raises:
        As `list_remote`, and OSError from the disk.
    """
    from huggingface_hub import snapshot_download

    _fence_session()
    try:
        snapshot_download(
            repo,
            revision=commit,
            cache_dir=cache_dir,
            allow_patterns=[file.path for file in files],
            endpoint=hub.endpoint,
            token=False,
            headers=dict(hub.headers),
            tqdm_class=_bar_class(sum(file.size for file in files), hub.host, show_progress),
            etag_timeout=ANSWER_S,
        )
    except Exception as error:
        raise explain(error, hub.endpoint, repo, commit) from error


def _bar_class(size_bytes: int, host: str, shown: bool) -> type:
    """Return the progress bar for a download; it also stops an endless file."""
    from huggingface_hub.utils.tqdm import tqdm

    from akidb_mlx_plugin.progress import is_notebook

    # None shows it on a terminal only; a notebook is none.
    disable = (False if is_notebook() else None) if shown else True
    # Interrupted attempts count again.
    most = 2 * size_bytes + (64 << 20)

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": disable})  # type: ignore[no-untyped-call]
            self.counted = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            self.counted += n or 0
            if self.counted > most:
                raise DownloadError(f"{host} sends more than the {size_bytes} bytes that it announced")
            return super().update(n)  # type: ignore[no-any-return]

    return Bar


def _fence_session() -> None:
    """Check the responses to this package's requests, and no others, before huggingface_hub acts on them."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["response"]
    if _check_answer not in hooks:
        hooks.append(_check_answer)


def _check_answer(response: Any) -> None:
    """Raise for an error status, and for an ETag that is not a file name: huggingface_hub writes where it points."""
    if not response.request.headers.get("user-agent", "").startswith(_AGENT):
        return
    if response.status_code >= 400:
        raise RefusedError(response)
    if response.request.method == "HEAD":
        for name in ("ETag", "X-Linked-Etag", "X-Repo-Commit"):
            value = response.headers.get(name)
            if value is not None and not _FILE_NAME.fullmatch(value):
                raise DownloadError(f"{response.request.url.host} sends {name}: {value[:80]!r}, which is not a digest")


class _Limits:
    """Limits on a whole listing."""

    def __init__(self) -> None:
        self._until = time.monotonic() + LISTING_S
        self._bytes = LISTING_BYTES
        self._pages = LISTING_PAGES

    def spend(self, *, size_bytes: int = 0, pages: int = 0) -> None:
        """Count part of a listing; raise DownloadError beyond the limits."""
        self._bytes -= size_bytes
        self._pages -= pages
        if min(self._bytes, self._pages) < 0 or time.monotonic() > self._until:
            raise DownloadError(
                f"the hub's file listing exceeds {LISTING_BYTES >> 20} MiB, {LISTING_PAGES} pages and "
                f"{LISTING_S:g} seconds; check HF_ENDPOINT"
            )


def _get_json(hub: Hub, url: str, limits: _Limits) -> tuple[Any, str | None]:
    """Return a page of the hub's API and the address of the next one."""
    from huggingface_hub import get_session

    limits.spend(pages=1)
    body = bytearray()
    with get_session().stream("GET", url, headers=hub.headers, timeout=ANSWER_S, follow_redirects=True) as response:
        if response.status_code >= 400:
            raise RefusedError(response)
        for chunk in response.iter_bytes():
            limits.spend(size_bytes=len(chunk))
            body += chunk
        following = response.links.get("next", {}).get("url")
    following = urljoin(url, following) if following else None
    if following and urlsplit(following)[:2] != urlsplit(hub.endpoint)[:2]:
        raise DownloadError(
            f"the listing of {hub.host} continues at {urlsplit(following).hostname}, which is another host"
        )
    return json.loads(body), following


def _as_listed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file of the hub's listing in huggingface_hub's form."""
    noted = {"size": entry["size"], "blob_id": entry["oid"]}
    if lfs := entry.get("lfs"):
        noted |= {"lfs_sha256": lfs["oid"].removeprefix("sha256:"), "lfs_size": lfs["size"]}
    # With any other hash, huggingface_hub would request the listing again.
    xet = entry.get("xetHash")
    return noted | ({"xet_hash": xet} if isinstance(xet, str) and _XET_HASH.fullmatch(xet) else {})
