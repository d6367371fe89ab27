"""Ask a Hugging Face hub: which commit, which files, and what its refusals mean.

The session (proxies, certificates) and the token are huggingface_hub's. Its downloads and listings are not used: they
throw away the part they have when they fail, repeat a request up to five times with waits of their own, and accept
a file of the right size with the wrong content.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from akidb_mlx_plugin._version import __version__
from akidb_mlx_plugin.errors import DownloadError, EmbeddingError, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.manifest import git_blob_id, sha256_of
from akidb_mlx_plugin.retries import TransientError, with_retries

# Connect timeout for a hub that something else can stand in for.
QUICK_TIMEOUT_S = 4.0

_DEFAULT_ENDPOINT = "https://huggingface.co"
_DEFAULT_TIMEOUT_S = 10.0
_MAY_PASS = {408, 425, 429}
# `"api";r=0;t=55`: no request is left, the window ends in 55 seconds. Source: huggingface.co/docs/hub/rate-limits.
_RATE_LIMIT = re.compile(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
# The commit names a folder, and the token travels in a header.
_COMMIT = re.compile(r"[0-9A-Za-z]{7,64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `sha256` is known where it is kept in Git LFS, else its git `blob_id`."""

    path: str
    size: int
    sha256: str | None
    blob_id: str

    def matches(self, file: Path) -> bool:
        """Tell whether a file on disk has exactly this content."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        return sha256_of(file) == self.sha256 if self.sha256 else git_blob_id(file) == self.blob_id


@dataclass(frozen=True)
class RemoteModel:
    """A repository at one commit."""

    endpoint: str
    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    def url(self, path: str) -> str:
        """Return where a file is fetched from."""
        return f"{self.endpoint}/{self.repo}/resolve/{self.commit}/{quote(path)}"


def is_offline() -> bool:
    """Tell whether the hub's own variables, as they are set now, forbid requests."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def hub_endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT as it is set now, else the public hub.

    Raises:
        InvalidInputError: HF_ENDPOINT is no http address.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or _DEFAULT_ENDPOINT
    if not endpoint.startswith(("http://", "https://")) or not urlsplit(endpoint).hostname:
        raise InvalidInputError(f"HF_ENDPOINT must be an address like https://huggingface.co, got {endpoint!r}")
    return endpoint


def list_remote(repo: str, revision: str, *, quick: bool = False) -> RemoteModel:
    """Resolve a branch, tag or commit and list the files of that commit.

    Args:
        repo: repository id.
        revision: branch, tag or commit.
        quick: give up on a hub that gives no answer instead of asking again.
    Raises:
        ModelNotFoundError: no such repository or revision.
        TransientError: the hub cannot be reached, or cannot answer now.
        DownloadError: the hub refuses, or does not answer like one.
    """
    endpoint = hub_endpoint()
    api = f"{endpoint}/api/models/{repo}"

    def get(url: str) -> tuple[Any, str | None]:
        return with_retries(lambda: _get_json(url, repo, revision, quick), retry_unreachable=not quick)

    files: list[RemoteFile] = []
    try:
        commit = str(get(f"{api}/revision/{quote(revision, safe='')}")[0]["sha"])
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"commit {commit!r}")
        url: str | None = f"{api}/tree/{commit}?recursive=true"
        while url:
            page, url = get(url)
            files += [_remote_file(entry) for entry in page if entry["type"] == "file"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, EmbeddingError):
            raise
        raise DownloadError(
            f"{host_of(endpoint)} does not answer like a Hugging Face hub ({error!r}); check HF_ENDPOINT and the proxy"
        ) from error
    return RemoteModel(endpoint, repo, commit, tuple(files))


@contextmanager
def open_url(
    url: str, repo: str, revision: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> Iterator[Any]:
    """GET something of a repository; what goes wrong, while the body is read too, arrives as an EmbeddingError.

    Args:
        url: full address.
        repo: for the messages.
        revision: for the messages.
        headers: besides user agent and token.
        timeout_s: for connecting and for each piece of the answer; None: HF_HUB_DOWNLOAD_TIMEOUT, else 10.
    Yields:
        The response, status below 400, body not read yet.
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    http = _http_library()
    timeout_s = timeout_s or float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or _DEFAULT_TIMEOUT_S)
    sent = {**_headers(), **(headers or {})}
    host = host_of(url)
    try:
        with get_session().stream("GET", url, headers=sent, timeout=timeout_s, follow_redirects=True) as response:
            if response.status_code >= 400:
                raise _refusal(response, repo, revision, host)
            yield response
    except http.TimeoutException as error:
        raise TransientError(f"{host} gave no answer for {timeout_s:g} seconds", unreachable=True) from error
    except http.RemoteProtocolError as error:
        raise TransientError(f"{host} cut the connection: {error}") from error
    except http.TransportError as error:
        raise TransientError(f"{host} cannot be reached: {error}", unreachable=True) from error
    except http.HTTPError as error:
        raise DownloadError(f"{host} cannot be used for {repo}: {error}") from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{repo} cannot be downloaded: HF_HUB_OFFLINE was set when huggingface_hub was imported"
        ) from error


def host_of(url: str) -> str:
    """Return the host and port of an address, without the credentials that may stand before them."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _http_library() -> ModuleType:
    """Return the HTTP library under huggingface_hub: httpx2 since 2.0, httpx before."""
    from huggingface_hub.errors import HfHubHTTPError

    return sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


def _headers() -> dict[str, str]:
    # Not `build_hf_headers`: it may ask the hub for a list of coding agents to name in the user agent.
    import huggingface_hub
    from huggingface_hub import constants, get_token

    headers = {"user-agent": f"akidb-mlx-plugin/{__version__}; hf_hub/{huggingface_hub.__version__}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if not token:
        return headers
    if not _TOKEN.fullmatch(token):
        # The HTTP library would refuse it too, and print it.
        raise DownloadError("HF_TOKEN holds characters that no token has; copy it again")
    return {**headers, "authorization": f"Bearer {token}"}


def _get_json(url: str, repo: str, revision: str, quick: bool) -> tuple[Any, str | None]:
    """Return a page of the hub's API and the address of the next one."""
    with open_url(url, repo, revision, timeout_s=QUICK_TIMEOUT_S if quick else None) as response:
        following = response.links.get("next", {}).get("url")
        return json.loads(response.read()), urljoin(url, following) if following else None


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    size = int(lfs["size"] if lfs else entry["size"])
    return RemoteFile(entry["path"], size, lfs["oid"].removeprefix("sha256:") if lfs else None, entry["oid"])


def _refusal(response: Any, repo: str, revision: str, host: str) -> EmbeddingError:
    """Turn an answer of 400 and above into the error that says what to do about it."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        page = f"{hub_endpoint()}/{repo}"
        return DownloadError(
            f"{repo} is gated ({status}): accept its licence at {page} and set HF_TOKEN to a token of that account"
        )
    if status == 401:
        return DownloadError(
            f"{host} refuses {repo} (401): it is private, or no such repository; check the name, or set HF_TOKEN to "
            "a valid token that may read it"
        )
    if status == 403:
        return DownloadError(f"{host} forbids {repo} (403): set HF_TOKEN to a token that may read it")
    if code == "RevisionNotFound":
        return ModelNotFoundError(f"{repo} has no revision {revision!r}; give a branch, tag or commit that it has")
    if status == 404:
        what = "the file its listing names" if code == "EntryNotFound" else "no such repository; check the name"
        return ModelNotFoundError(f"{host} does not have {repo} (404): {what}")
    if status in _MAY_PASS or status >= 500:
        wait_s = _asked_wait(response.headers)
        later = f"; it asks to wait {wait_s:g} seconds" if wait_s else ""
        token = ", or set HF_TOKEN for a higher limit" if status == 429 else ""
        return TransientError(
            f"{host} cannot serve {repo} now ({status}){later}; try again later{token}", wait_s=wait_s
        )
    return DownloadError(f"{host} answers {status} for {repo}")


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait, by Retry-After (a number or a date) or RateLimit."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
    limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
