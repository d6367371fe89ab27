"""The exceptions of this package. A message states what was wrong, the value, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any


class EmbeddingError(Exception):
    """Base of every error that this package raises deliberately."""


class InvalidInputError(EmbeddingError, ValueError):
    """A text, a vector, an argument or a configuration value cannot be used."""


class ModelNotFoundError(EmbeddingError, LookupError):
    """No such model, or not a checkpoint that this package can load."""


class DownloadError(EmbeddingError, OSError):
    """A model could not be downloaded or verified."""


class DimensionMismatchError(EmbeddingError, ValueError):
    """The dimension of a vector or model does not fit the collection.

    Attributes:
        expected: the dimension of the collection, or the one that the caller requires.
        actual: the actual dimension.
    """

    def __init__(self, message: str = "", *, expected: int, actual: int) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(message or f"expected vectors of {expected} dimensions, got {actual}")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), expected=self.expected, actual=self.actual), self.args


class ServiceUnavailableError(EmbeddingError, RuntimeError):
    """The service cannot answer now: it is closed, full, past its deadline, or forked, or its worker has died."""


class QueueFullError(ServiceUnavailableError):
    """The queue has no room for a request; what a web service answers with status 429."""


class DeadlineExceededError(ServiceUnavailableError):
    """A request was not answered within its deadline."""


class UpsertError(EmbeddingError):
    """An upsert or re-embedding ended before every document was written; running it again is safe.

    Attributes:
        written: ids of the documents that were written; for a stream, which may be too long to remember, the last
            10,000 of them.
        not_written: ids of the others; for a stream, those of the chunks that had been read from it.
        written_count: number of documents written, also for a stream.
    """

    def __init__(self, message: str, *, written: Sequence[str], not_written: Sequence[str], written_count: int) -> None:
        self.written = list(written)
        self.not_written = list(not_written)
        self.written_count = written_count
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), written=self.written, not_written=self.not_written, written_count=self.written_count)
        return make, self.args
