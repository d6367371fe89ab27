"""The models in memory, shared by the whole process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.hub.registry import resolve
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.reranker import Reranker
from akidb_mlx_plugin.pooling_names import join_pooling
from akidb_mlx_plugin.runtime.devices import choose_device

_Key = tuple[str, ...]
# What is shared: an embedder or a reranker.
Model = TypeVar("Model", bound="Closable")
_DEFAULTS = LoadOptions()


class Closable(Protocol):
    """A loaded model."""

    def close(self) -> None:
        """Free the weights."""


@dataclass
class _Entry:
    """A model that is loaded or loading, and its number of holders."""

    loading: threading.Lock = field(default_factory=threading.Lock)
    model: Closable | None = None
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
    pooling = "" if options.pooling is None else join_pooling(options.pooling)
    return _acquire(Embedder, (*_identify(model, options), pooling), lambda: Embedder.open(model, options))


def acquire_reranker(
    model: str | Path,
    options: LoadOptions = _DEFAULTS,
    *,
    activation: str | None = None,
    instruction: str | None = None,
) -> Reranker:
    """Return the process's only reranker of a model with these settings, as `acquire_embedder`.

    Arguments and errors are those of `Reranker.open`.
    """
    key = ("reranker", *_identify(model, options), activation or "", repr(instruction))
    return _acquire(
        Reranker, key, lambda: Reranker.open(model, options, activation=activation, instruction=instruction)
    )


def release_model(model: Closable) -> None:
    """Release an acquired embedder or reranker; the last holder's release frees it."""
    with _lock:
        found = next(((key, entry) for key, entry in _entries.items() if entry.model is model), None)
    if found:
        _drop(*found)


def _identify(model: str | Path, options: LoadOptions) -> tuple[str, ...]:
    source = resolve(model)
    place = str(source.folder or source.repo)
    return place, choose_device(options.device), options.dtype, str(options.cache_dir)


def _acquire(kind: type[Model], key: _Key, load: Callable[[], Model]) -> Model:
    with _lock:
        entry = _entries.setdefault(key, _Entry())
        entry.holders += 1
    try:
        with entry.loading:
            if entry.model is None:
                entry.model = load()
            assert isinstance(entry.model, kind), "keys of different kinds of models differ"
            return entry.model
    except BaseException:
        _drop(key, entry)
        raise


def _drop(key: _Key, entry: _Entry) -> None:
    with _lock:
        entry.holders -= 1
        last = entry.holders == 0
        if last:
            _entries.pop(key, None)
    if last and entry.model is not None:
        entry.model.close()
