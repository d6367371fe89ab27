"""The models in memory, shared by the whole process."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.hub.registry import resolve
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.pooling_names import join_pooling
from akidb_mlx_plugin.runtime.devices import choose_device

_Key = tuple[str, str, str, str, str]
_DEFAULTS = LoadOptions()


@dataclass
class _Entry:
    """A model that is loaded or loading, and its number of holders."""

    loading: threading.Lock = field(default_factory=threading.Lock)
    embedder: Embedder | None = None
    holders: int = 0


_entries: dict[_Key, _Entry] = {}
_lock = threading.Lock()


def _renew_locks() -> None:
    """Replace, in a forked child, locks that a parent's thread may have held and nobody would release."""
    global _lock
    _lock = threading.Lock()
    for entry in _entries.values():
        entry.loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def acquire_embedder(model: str | Path, options: LoadOptions = _DEFAULTS) -> Embedder:
    """Return the process's only embedder of a model, loading it for the first caller; release it when done.

    Callers that arrive during the load wait for it. The next caller retries a failed load.
    Arguments and errors are those of `Embedder.open`.
    """
    source = resolve(model)
    pooling = "" if options.pooling is None else join_pooling(options.pooling)
    key = (
        str(source.folder or source.repo),
        choose_device(options.device),
        options.dtype,
        str(options.cache_dir),
        pooling,
    )
    with _lock:
        entry = _entries.setdefault(key, _Entry())
        entry.holders += 1
    try:
        with entry.loading:
            if entry.embedder is None:
                entry.embedder = Embedder.open(model, options)
            return entry.embedder
    except BaseException:
        _drop(key, entry)
        raise


def release_embedder(embedder: Embedder) -> None:
    """Release an acquired embedder; the last holder's release frees it."""
    with _lock:
        found = next(((key, entry) for key, entry in _entries.items() if entry.embedder is embedder), None)
    if found:
        _drop(*found)


def _drop(key: _Key, entry: _Entry) -> None:
    with _lock:
        entry.holders -= 1
        last = entry.holders == 0
        if last:
            _entries.pop(key, None)
    if last and entry.embedder is not None:
        entry.embedder.close()
