"""The files that benchmarks write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCUMENT_KEYS = {"benchmark", "package", "when", "machine", "settings", "interrupted", "summary", "results", "raw"}


def read_report(folder: Path, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert set(document) == DOCUMENT_KEYS
    assert document["benchmark"] == name
    assert {"processor", "cores", "memory_gb", "python"} <= set(document["machine"])
    return document
