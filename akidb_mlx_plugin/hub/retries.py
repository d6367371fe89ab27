"""Failures of a hub: retry them, time out, or explain what to do."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from akidb_mlx_plugin.errors import DownloadError, EmbeddingError, ModelNotFoundError

ATTEMPTS = 3
# First wait between attempts; it doubles.
BACKOFF_S = 1.0
# A server that asks for a longer wait is reported instead.
LONGEST_WAIT_S = 60.0

_MAY_PASS = {408, 425, 429}
# `"api";r=0;t=55`: no requests are left, the window ends in 55 seconds. Source: huggingface.co/docs/hub/rate-limits.
_RATE_LIMIT = re.compile(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TransientError(DownloadError):
    """A download failed for a reason that may be temporary.

    Attributes:
        wait_s: how long the server asks to wait; None if it does not say.
        unreachable: no answer came; not retried.
    """

    def __init__(self, message: str, *, wait_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.unreachable = unreachable


class RefusedError(Exception):
    """A status of 400 or above, raised before huggingface_hub waits as long as the response says."""

    def __init__(self, response: Any) -> None:
        super().__init__(response.status_code)
        self.response = response


def with_retries(action: Callable[[], T]) -> T:
    """Run an action up to `ATTEMPTS` times, retrying transient failures after growing waits.

    Raises:
        TransientError: the last one, with the number of attempts.
    """
    attempt = 1
    while True:
        try:
            return action()
        except TransientError as error:
            wait_s = BACKOFF_S * 2.0 ** (attempt - 1) if error.wait_s is None else error.wait_s
            if attempt == ATTEMPTS or error.unreachable or wait_s > LONGEST_WAIT_S:
                tried = f" (tried {attempt} times)" if attempt > 1 else ""
                raise TransientError(f"{error}{tried}", wait_s=error.wait_s, unreachable=error.unreachable) from error
            logger.warning("%s; trying again in %g s", error, wait_s)
        time.sleep(wait_s)
        attempt += 1


def within_deadline(seconds: float, action: Callable[[], T], message: str) -> T:
    """Run an action, waiting at most `seconds` for it.

    A connect timeout applies to each of a host's addresses in turn, and a name lookup has none; only abandoning a
    thread bounds both.

    Raises:
        TransientError: the time is up; its text is `message`.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="akidb-hub-probe", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except FutureTimeoutError as error:
        if future.done():
            raise
        raise TransientError(message, unreachable=True) from error


def explain(error: Exception, endpoint: str, repo: str, revision: str) -> Exception:
    """Return what to raise for a failed request: an error that says what to do, or the disk's own."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    host = urlsplit(endpoint).netloc
    # httpx2 since huggingface_hub 2.0, httpx before.
    http = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
    for cause in _chain(error):
        if isinstance(cause, EmbeddingError):
            return cause
        if isinstance(cause, RefusedError | HfHubHTTPError):
            return _refusal(cause.response, endpoint, repo, revision)
        if isinstance(cause, OfflineModeIsEnabled):
            return DownloadError(f"{repo} cannot be downloaded: huggingface_hub was imported with HF_HUB_OFFLINE set")
        if isinstance(cause, http.TimeoutException):
            return TransientError(f"{host} did not respond in time", unreachable=True)
        if isinstance(cause, http.RemoteProtocolError):
            return TransientError(f"{host} closed the connection: {cause}")
        if isinstance(cause, http.TransportError):
            return TransientError(f"{host} cannot be reached: {cause}", unreachable=True)
        if isinstance(cause, http.HTTPError | http.InvalidURL):
            return DownloadError(f"{host} cannot be used for {repo}: {cause}")
    if isinstance(error, OSError) and error.errno is None and not type(error).__module__.startswith("huggingface_hub"):
        # huggingface_hub's consistency check.
        return TransientError(f"a file of {repo} arrived incomplete from {host}")
    if type(error).__module__.startswith("huggingface_hub"):
        return DownloadError(f"{host} does not answer like a Hugging Face hub: {error}; check HF_ENDPOINT")
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _refusal(response: Any, endpoint: str, repo: str, revision: str) -> EmbeddingError:
    """Turn a status of 400 or above into an error that says what to do."""
    host = urlsplit(endpoint).netloc
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return DownloadError(
            f"{repo} is gated ({status}): accept its license at {endpoint}/{repo} and set HF_TOKEN to a token of "
            "that account"
        )
    if status == 401:
        return DownloadError(
            f"{host} denies access to {repo} (401): it is private or does not exist; check the name, or set HF_TOKEN "
            "to a valid token that may read it"
        )
    if status == 403:
        return DownloadError(f"{host} forbids access to {repo} (403): set HF_TOKEN to a token that may read it")
    if code == "RevisionNotFound":
        return ModelNotFoundError(f"{repo} has no revision {revision!r}; give an existing branch, tag or commit")
    if status == 404:
        what = (
            "a file that its listing names is missing"
            if code == "EntryNotFound"
            else "no such repository; check the name"
        )
        return ModelNotFoundError(f"{host} does not have {repo} (404): {what}")
    if status in _MAY_PASS or status >= 500:
        wait_s = _asked_wait(response.headers)
        later = f"; it asks for a wait of {wait_s:g} seconds" if wait_s else ""
        token = ", or set HF_TOKEN for a higher limit" if status == 429 else ""
        return TransientError(
            f"{host} cannot serve {repo} now ({status}){later}; try again later{token}", wait_s=wait_s
        )
    return DownloadError(f"{host} answers {status} for {repo}")


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait, from Retry-After (a number or a date) or RateLimit."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
    limit = _RATE_LIMIT.search(headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None
