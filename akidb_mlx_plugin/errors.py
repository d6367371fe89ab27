"""The exceptions of this package. A message says what was wrong, with the value, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any


class EmbeddingError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInputError(EmbeddingError, ValueError):
    """A text, a vector, an argument or a configuration value cannot be used."""


class ModelNotFoundError(EmbeddingError, LookupError):
    """No such model, or what is there is not a checkpoint this package can load."""


class DownloadError(EmbeddingError, OSError):
    """A model could not be fetched or verified."""


class DimensionMismatchError(EmbeddingError, ValueError):
    """A vector, or a whole model, does not fit the collection it is meant for.

    Attributes:
        expected: the dimension the collection has or the caller requires.
        actual: the dimension at hand.
    """

    def __init__(self, message: str = "", *, expected: int, actual: int) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(message or f"expected vectors of {expected} dimensions, got {actual}")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), expected=self.expected, actual=self.actual), self.args


class ServiceUnavailableError(EmbeddingError, RuntimeError):
    """The service cannot answer now: closed, full, past its deadline, forked, or its worker is gone."""


class UpsertError(EmbeddingError):
    """An upsert or a re-embedding ended before every document was written; running it again is safe.

    Attributes:
        written: ids of documents that are in the collection as they should be. Of a stream, which nobody can hold
            whole, the last 10,000 of them.
        not_written: ids of the others. Of a stream, those of the chunks that had been taken from it.
        written_count: how many are in, of a stream too.
    """

    def __init__(self, message: str, *, written: Sequence[str], not_written: Sequence[str], written_count: int) -> None:
        self.written = list(written)
        self.not_written = list(not_written)
        self.written_count = written_count
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), written=self.written, not_written=self.not_written, written_count=self.written_count)
        return make, self.args
