"""What the tests with real frameworks share; each file is skipped where its framework is not installed."""

from __future__ import annotations

import os
import tempfile

import pytest
from host_fixtures import tiny_dir as tiny_dir
from host_helpers import DOCUMENTS

# DSPy keeps answers on disk, in a folder that it reads from here when it is imported; the others report what is used.
os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp(prefix="dspy-cache-"))
os.environ |= {"HAYSTACK_TELEMETRY_ENABLED": "false", "ANONYMIZED_TELEMETRY": "false"}

# Questions in other words than the documents, and the document that answers each.
QUESTIONS = {
    "convert text into a datetime": DOCUMENTS["date"],
    "load the contents from disk": DOCUMENTS["file"],
    "cook spaghetti": DOCUMENTS["pasta"],
}


@pytest.fixture(autouse=True)
def _with_minilm(minilm_dir: object) -> None:
    """The model is here before a framework asks for it."""


@pytest.fixture
def questions() -> dict[str, str]:
    """Questions, and the text that answers each."""
    return QUESTIONS
