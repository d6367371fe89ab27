"""The pipeline into either database: screen rows, skip those already there, embed, write, report."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.data import Dataset
from ray.exceptions import RayError, RayTaskError

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_ray.columns import Columns
from akidb_mlx_ray.dataset import Workers, embedder_arguments, map_embedder, reject_client
from akidb_mlx_ray.rejects import RejectFile
from akidb_mlx_ray.results import BulkResult, Tally
from akidb_mlx_ray.screening import keep_good, screen

_ADVICE = re.compile(r"\s*Failed to apply UDF transform after")
_RAYS_OWN = re.compile(r"ray\.exceptions\.")
_NAMED_ERROR = re.compile(r"[A-Za-z_.]+(Error|Exception|Invalid)\b.*: ")


class BulkStore(ABC):
    """A table or collection to write a dataset to; it may not exist yet.

    Attributes:
        label: what messages call it: "table 'docs'".
        service: of the function that makes its vectors.
        trusted: False if that function is the database's stored one.
        columns: where a row's parts are.
    """

    label: str
    service: EmbeddingService
    trusted: bool
    columns: Columns

    @abstractmethod
    def check_columns(self, given: Mapping[str, Any]) -> None:
        """Check that it can keep a dataset's columns, given by name with their types; creates nothing.

        Raises:
            InvalidInputError: a column cannot be kept, or one is missing.
        """

    @abstractmethod
    def make(self, given: Mapping[str, Any]) -> None:
        """Create it for such columns if it does not exist, with its function and stamp, and ready for lookups."""

    @abstractmethod
    def drop_present(self, ds: Dataset) -> Dataset:
        """Return the rows whose ids it now lacks; writes nothing."""

    @abstractmethod
    def write(self, ds: Dataset, rows: int) -> int:
        """Write rows that have vectors, and return how many; `rows` is the most there may be."""


@dataclass(frozen=True)
class Options:
    """How a run treats rows that cannot be embedded.

    Attributes:
        strict: stop at a row that cannot be embedded, before anything is written; else leave such rows out.
        rejects: the file that lists rows left out.
    """

    strict: bool
    rejects: Path


def run(ds: Dataset, store: BulkStore, workers: Workers, options: Options) -> BulkResult:
    """Write a dataset's rows that a store lacks."""
    begun = time.perf_counter()
    with RejectFile(options.rejects) as rejects, typed_errors(store.label):
        given = columns_of(ds)
        store.columns.check_schema(given)
        store.check_columns(given)
        screening = screen(ds, store.columns, rejects)
        if options.strict and rejects.counts:
            raise InvalidInputError(
                f"{_spell(rejects.counts)}; see {rejects.path}. Nothing was written: fix the data, or leave such "
                "rows out by running without strict"
            )
        store.make(given)
        missing = store.drop_present(keep_good(ds, store.columns, screening))
        tally = Tally()
        good = screening.rows - sum(rejects.counts.values())
        written = store.write(embed(missing, store, workers, tally), good)
        reports, failures = tally.read()
        for failure in failures:
            rejects.add(failure.id, failure.text, failure.reason)
        if options.strict and failures:
            raise EmbeddingError(
                f"the model failed on {_count(len(failures), 'text')}, in {rejects.path}; the others were written"
            )
    return BulkResult(
        rows=screening.rows,
        written=written,
        already_there=good - written - len(failures),
        rejected=rejects.counts,
        rejects=rejects.path,
        seconds=time.perf_counter() - begun,
        workers=reports,
    )


def check_service(service: EmbeddingService) -> Columns:
    """Return columns, still unnamed, for a function's vectors; downloads its model if needed, loads nothing.

    Raises:
        InvalidInputError: the function does not know the length of its vectors.
    """
    info = service.model_info()
    if not info.dimension:
        raise InvalidInputError("mode 'user_provided' needs dimension=, the length of your vectors")
    return Columns("", "", "", info.dimension, service.config.mode != "user_provided")


def columns_of(ds: Dataset) -> dict[str, Any]:
    """Return a dataset's columns with their types, Arrow's if Ray knows them.

    Raises:
        InvalidInputError: it has none.
    """
    reject_client()
    schema = ds.schema()
    if schema is None:
        raise InvalidInputError("the dataset is empty: it has no rows and no columns")
    return dict(zip(schema.names, schema.types, strict=True))


def embed(ds: Dataset, store: BulkStore, workers: Workers, tally: Tally) -> Dataset:
    """Return good rows with vectors from the store's function; the tally counts the work."""
    columns = store.columns
    arguments = {
        **embedder_arguments(store.service.config),
        "text_column": columns.text,
        "vector_column": columns.vector,
        "id_column": columns.id,
        "trusted": store.trusted,
        "tally": tally,
    }
    return map_embedder(ds, arguments, workers)


@contextmanager
def typed_errors(label: str) -> Iterator[None]:
    """Raise our own errors unwrapped; add to all others that the run can be continued."""
    try:
        yield
    except EmbeddingError as error:
        # Ray makes exceptions of both types, with a stack trace as their message.
        raise (_find_own(error) or error) from None
    except RayError as error:
        own = _find_own(error)
        if own is not None:
            raise own from error
        raise EmbeddingError(
            f"{label}: the run ended early: {_root(error)}; what was written stays, and with the cause fixed, the same "
            "call continues from there"
        ) from error


def _find_own(error: BaseException | None) -> EmbeddingError | None:
    while error is not None:
        if isinstance(error, EmbeddingError) and not isinstance(error, RayTaskError):
            error.args = (_without_advice(str(error)), *error.args[1:])
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _root(error: BaseException) -> str:
    """Return the line that says what went wrong: Ray turns messages into stack traces, and wraps errors in its own."""
    chain = [error]
    while (inner := getattr(chain[-1], "cause", None) or chain[-1].__cause__) is not None:
        chain.append(inner)
    lines = [line.strip() for each in chain for line in _without_advice(str(each)).splitlines() if line.strip()]
    named = [line for line in lines if _NAMED_ERROR.match(line) and not _RAYS_OWN.match(line)]
    last = chain[-1]
    return named[-1] if named else f"{type(last).__name__}: {_without_advice(str(last)).strip()}"


def _without_advice(message: str) -> str:
    """Return what was wrong, without Ray's advice on how to try again."""
    return _ADVICE.split(message)[0]


def _spell(counts: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return f"{_count(sum(counts.values()), 'row')} cannot be embedded ({reasons})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
