"""Caches that earlier versions wrote, `<org>--<name>/<12 hex of the commit>/`: find, read and remove them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.hub.files import FileEntry, Snapshot

MANIFEST_NAME = "akidb-model.json"
INCOMPLETE = ".incomplete-"


def folders(cache_dir: Path, repo: str = "*--*") -> Iterator[Path]:
    """Yield models and unfinished downloads in the old layout, of one repository or all."""
    for folder in cache_dir.glob(f"{repo.replace('/', '--')}/*"):
        if folder.parent.name.startswith("models--"):
            continue
        if folder.is_dir() and ((folder / MANIFEST_NAME).is_file() or folder.name.startswith(INCOMPLETE)):
            yield folder


def read(folder: Path) -> tuple[Snapshot, dict[str, float]] | None:
    """Read a model in the old layout and the revisions that led to it, with times; None if there is none."""
    if folder.name.startswith(INCOMPLETE):
        return None
    record = folder / MANIFEST_NAME
    try:
        value: dict[str, Any] = json.loads(record.read_bytes())
        files = tuple(FileEntry(file["path"], int(file["size"]), str(file["sha256"])) for file in value["files"])
        refs = {ref: float(when) for ref, when in value["refs"].items()}
        return Snapshot(value["repo"], value["revision"], folder, value["source"], files, record), refs
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find(cache_dir: Path, repo: str, revision: str) -> list[Snapshot]:
    """Return what a revision, a commit or the start of one led to, latest first."""
    found = []
    for folder in folders(cache_dir, repo):
        snapshot, refs = read(folder) or (None, {})
        if snapshot is None:
            continue
        if len(revision) >= 7 and snapshot.commit.startswith(revision):
            found.append((0.0, snapshot))
        elif revision in refs:
            # A time in the future comes from a wrong clock, and would win for years.
            found.append((refs[revision] if refs[revision] <= time.time() else -1.0, snapshot))
    return [snapshot for _, snapshot in sorted(found, key=lambda entry: entry[0], reverse=True)]


def discard(folder: Path) -> None:
    """Remove a folder, renaming it to `.incomplete-` first so that half a model is never seen."""
    doomed = folder
    if not folder.name.startswith(INCOMPLETE):
        doomed = folder.with_name(f"{INCOMPLETE}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed)
    with suppress(OSError):
        folder.parent.rmdir()
