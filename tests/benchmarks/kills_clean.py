"""What kills.py needs of `akidb-mlx cache clean`: a cache of many models, one of which computes meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from loopback_hub import Hub

WHAT = "akidb-mlx cache clean"
_GOLDEN = Path(__file__).parents[1] / "golden" / "bert" / "model"
_FILES = {str(path.relative_to(_GOLDEN)): path.read_bytes() for path in _GOLDEN.rglob("*") if path.is_file()}
_COUNT = 30
_RUNNING = "org/model0"
_TEXTS = ["the stone bridge", "a river in winter"]
_running: dict[Path, Any] = {}
_template = Path()


@contextmanager
def setting() -> Iterator[None]:
    """Download all models once; rounds work on copies."""
    global _template
    from akidb_mlx_plugin import download_model

    before = os.environ.get("HF_ENDPOINT")
    with tempfile.TemporaryDirectory() as folder, Hub() as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        _template = Path(folder) / "cache"
        for number in range(_COUNT):
            hub.add(f"org/model{number}", _FILES)
            download_model(f"org/model{number}", cache_dir=_template)
        yield
    if before is None:
        del os.environ["HF_ENDPOINT"]
    else:
        os.environ["HF_ENDPOINT"] = before


def prepare(folder: Path) -> None:
    """Copy the cache, and start the model that is to stay."""
    from akidb_mlx_plugin import EmbeddingConfig, EmbeddingService

    shutil.copytree(_template, folder / "cache", symlinks=True)
    _running[folder] = EmbeddingService(EmbeddingConfig.from_arguments(_RUNNING, cache_dir=folder / "cache"))
    _running[folder].embed_batch(_TEXTS)


def warm_up() -> None:
    """Import the command."""
    import akidb_mlx_plugin.cli

    _ = akidb_mlx_plugin.cli.app


def work(folder: Path) -> None:
    """Run the command."""
    from akidb_mlx_plugin.cli import app

    # Its report goes to a pipe that nobody reads.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    app(["cache", "clean", "--max-gb", "0", "--cache-dir", str(folder / "cache")], standalone_mode=False)


def look(folder: Path) -> str:
    """Return how many models are left, once each was found whole and the running one was asked."""
    from akidb_mlx_plugin import list_cached_models

    models = list_cached_models(folder / "cache")
    for model in models:
        for name, content in _FILES.items():
            assert (model.folder / name).read_bytes() == content, f"{model.name} is half gone and taken for whole"
    assert _RUNNING in {model.name for model in models}, "the model that was running is gone"
    computed = _running[folder].embed_batch(_TEXTS).embeddings
    assert np.abs(np.linalg.norm(computed, axis=1) - 1).max() < 1e-5, "the running model computes something else"
    if len(models) == 1:
        return "all"
    return "every model" if len(models) == _COUNT else "some of the models"


def finish(folder: Path) -> None:
    """Stop the model."""
    _running.pop(folder).close()
