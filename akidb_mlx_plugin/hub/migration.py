"""Move a cache from the old layout to huggingface_hub's."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.cache import resolve_cache_dir
from akidb_mlx_plugin.hub.download import add_file, publish
from akidb_mlx_plugin.hub.files import describe_file
from akidb_mlx_plugin.hub.locks import download_lock, held_alone, use_lock
from akidb_mlx_plugin.hub.snapshots import repo_folder


def migrate_cache(cache_dir: str | Path | None = None) -> tuple[list[Path], dict[Path, str]]:
    """Verify every model in the old layout and move it without copying.

    Returns:
        The new folders, and the old ones that stay, with the reason.
    """
    root = resolve_cache_dir(cache_dir)
    moved, left = [], {}
    for folder in list(legacy.folders(root)):
        found = legacy.read(folder)
        if found is None:
            continue
        snapshot, refs = found
        with ExitStack() as stack:
            stack.enter_context(download_lock(root, snapshot.repo))
            lock = use_lock(folder)
            if lock and not stack.enter_context(held_alone(lock)):
                left[folder] = "a process uses it"
                continue
            if damaged := snapshot.damaged_files(deep=True):
                left[folder] = f"damaged: {', '.join(damaged)}"
                continue
            files = [describe_file(folder, file.path) for file in snapshot.files]
            name = folder.name if snapshot.commit.startswith("sha256:") else snapshot.commit
            target = repo_folder(root, snapshot.repo) / "snapshots" / name
            for file in files:
                add_file(target, file, folder / file.path)
            used = snapshot.record.stat().st_mtime if snapshot.record else 0.0
            record = publish(target, files, snapshot.source, sorted(refs, key=lambda ref: refs[ref]))
            os.utime(record, (used, used))
            legacy.discard(folder)
            moved.append(target)
    return moved, left
