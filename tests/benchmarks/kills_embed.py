"""What kills.py needs of `akidb-mlx embed`: an input, and an output of an earlier run that it replaces."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

WHAT = "akidb-mlx embed"
_MODEL = str(Path(__file__).parents[1] / "golden" / "bert" / "model")
_TEXTS = [f"text {n} of many" for n in range(4000)]
_OLD = b"what an earlier run has written"


@contextmanager
def setting() -> Iterator[None]:
    """Hold nothing."""
    yield


def prepare(folder: Path) -> None:
    """Write the input, and an output of before."""
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(_TEXTS))
    )
    (folder / "out.jsonl").write_bytes(_OLD)


def warm_up() -> None:
    """Import the command and what it computes with."""
    import akidb_mlx_plugin.checkpoints.loading
    import akidb_mlx_plugin.cli

    _ = akidb_mlx_plugin.cli.app


def work(folder: Path) -> None:
    """Run the command."""
    from akidb_mlx_plugin.cli import app

    # Its report goes to a pipe that nobody reads.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    arguments = ["embed", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), "--model", _MODEL]
    app(arguments, standalone_mode=False)


@lru_cache(maxsize=1)
def _expected() -> list[list[float]]:
    from akidb_mlx_plugin import EmbeddingService

    with EmbeddingService(_MODEL) as service:
        vectors: list[list[float]] = service.embed_batch(_TEXTS).embeddings.tolist()
    return vectors


def look(folder: Path) -> str:
    """Return whose output is there; it is the old one or the new one, whole."""
    import numpy as np

    content = (folder / "out.jsonl").read_bytes()
    if content == _OLD:
        return "the old output, an unfinished one beside it" if len(os.listdir(folder)) > 2 else "the old output"
    rows = [json.loads(line) for line in content.splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == list(enumerate(_TEXTS)), "rows are lost, doubled or mixed"
    distance = np.abs(np.array([row["vector"] for row in rows]) - np.array(_expected())).max()
    assert distance < 1e-5, f"vectors differ by {distance}"
    return "all"


def finish(folder: Path) -> None:
    """Leave everything to the end of the folder."""
