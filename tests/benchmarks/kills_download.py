"""What kills.py needs of downloads: a hub on the loopback interface, and a cache that it is downloaded to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopback_hub import REPO, Hub, tiny_files

WHAT = "download"
_BYTES = 24_000_000
_FILES = tiny_files(size=_BYTES)


@contextmanager
def setting() -> Iterator[None]:
    """Run the hub."""
    before = os.environ.get("HF_ENDPOINT")
    with Hub() as hub:
        hub.add(REPO, _FILES)
        os.environ["HF_ENDPOINT"] = hub.url
        yield
    if before is None:
        del os.environ["HF_ENDPOINT"]
    else:
        os.environ["HF_ENDPOINT"] = before


def prepare(folder: Path) -> None:
    """Make nothing: the cache is empty."""


def warm_up() -> None:
    """Import what downloads."""
    import huggingface_hub

    import akidb_mlx_plugin

    _ = huggingface_hub.snapshot_download, akidb_mlx_plugin.download_model


def work(folder: Path) -> None:
    """Download."""
    from akidb_mlx_plugin import download_model

    check(download_model(REPO, cache_dir=folder / "cache"))


def check(model: Path) -> None:
    """Check that a folder holds what was downloaded, all of it."""
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    wanted = {"config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"}
    assert wanted <= files, f"{model} lacks {', '.join(sorted(wanted - files))} and is taken for whole"
    for name in wanted:
        assert (model / name).read_bytes() == _FILES[name], (
            f"{name} of {model} is not the hub's, and is taken for whole"
        )


def look(folder: Path) -> str:
    """Return what the cache says it has, once that was checked."""
    from akidb_mlx_plugin import list_cached_models

    whole = list_cached_models(folder / "cache")
    for model in whole:
        check(model.folder)
    assert len(whole) <= 1, "one model is there twice"
    if whole:
        return "all"
    return "a part" if list_cached_models(folder / "cache", include_partial=True) else "nothing"


def finish(folder: Path) -> None:
    """Leave everything to the end of the folder."""
