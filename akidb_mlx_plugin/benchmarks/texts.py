"""Texts for measurements: real ones, in a fixed order, as many as needed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from akidb_mlx_plugin.benchmarks.corpus import all_docstrings
from akidb_mlx_plugin.errors import InvalidInputError


def read_corpus(file: Path | None = None) -> list[str]:
    """Return every text of a corpus.

    They are shuffled reproducibly, so that the first texts are always a fair sample.

    Args:
        file: one text per line; None for the docstrings of the standard library.
    Raises:
        InvalidInputError: the file cannot be read, or is empty.
    """
    texts = list(all_docstrings()) if file is None else _read_lines(file)
    random.Random(0).shuffle(texts)
    return texts


def take_texts(corpus: Sequence[str], count: int) -> list[str]:
    """Return the first texts of a corpus; one that is too small is repeated with a number after each text."""
    rounds = -(-count // len(corpus))
    return [text if i == 0 else f"{text} {i}" for i in range(rounds) for text in corpus][:count]


def first_lines(corpus: Sequence[str]) -> list[str]:
    """Return the first line of each text: a docstring's summary, about as long as a search query."""
    return [text.strip().partition("\n")[0] or text for text in corpus]


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the corpus {file}: {error}") from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise InvalidInputError(f"the corpus {file} has no texts; it needs one per line")
    return texts
