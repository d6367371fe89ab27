"""The texts that are measured with: real ones, in one fixed order, as many as are wanted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from akidb_mlx_plugin.benchmarks.corpus import all_docstrings
from akidb_mlx_plugin.errors import InvalidInputError


def read_corpus(file: Path | None = None) -> list[str]:
    """Return every text of a corpus.

    They are shuffled, always in the same way, so that any beginning of the list is a fair sample of it.

    Args:
        file: one text per line; None: the docstrings of the standard library.
    Raises:
        InvalidInputError: the file cannot be read, or has no text in it.
    """
    texts = list(all_docstrings()) if file is None else _read_lines(file)
    random.Random(0).shuffle(texts)
    return texts


def take_texts(corpus: Sequence[str], count: int) -> list[str]:
    """Return the first texts of a corpus; one that is too small is repeated with a number behind each text."""
    rounds = -(-count // len(corpus))
    return [text if i == 0 else f"{text} {i}" for i in range(rounds) for text in corpus][:count]


def first_lines(corpus: Sequence[str]) -> list[str]:
    """Return the first line of each text: of a docstring the summary, about as long as what people search for."""
    return [text.strip().partition("\n")[0] or text for text in corpus]


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the corpus {file}: {error}") from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise InvalidInputError(f"the corpus {file} has no text in it; it needs one per line")
    return texts
