"""Estimate a run's rows, tokens, time and disk space from a measured sample; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from akidb_mlx_ray.dataset import Workers, iterate
from akidb_mlx_ray.pipeline import BulkStore, columns_of, embed, typed_errors
from akidb_mlx_ray.rejects import RejectFile
from akidb_mlx_ray.results import Tally
from akidb_mlx_ray.screening import keep_good, screen

# Texts embedded to measure the speed: per worker, and at most in all.
# They are drawn from up to `_PER_BLOCK` rows of each block that Ray reads.
_SAMPLE, _MAX_SAMPLE = 512, 4096
_PER_BLOCK = 128
# Column with a block's number of rows, on the first row drawn from it.
_BLOCK_ROWS = "rows of the block"
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    """Estimate of a run.

    Attributes:
        rows: in the dataset.
        rejected: rows that could not be embedded, by reason.
        rejects: the file that lists them; None if there are none.
        already_there: rows whose ids the database has.
        to_write: rows that it would get.
        sample: number of texts embedded to measure.
        tokens: of the rows to write, from the sample.
        texts_per_second: of all workers together, from the sample.
        seconds: for embedding alone, without starting Ray, reading and writing.
        disk_bytes: for vectors and columns, without compression or an index.
    """

    rows: int
    rejected: Mapping[str, int]
    rejects: Path | None
    already_there: int
    to_write: int
    sample: int
    tokens: int
    texts_per_second: float
    seconds: float
    disk_bytes: int


def estimate(ds: Dataset, store: BulkStore, workers: Workers, rejects_path: Path) -> Estimate:
    """Look at every row, embed a few of them with the workers of the run, and estimate the whole.

    Raises:
        As the run itself, for input it would reject.
    """
    with RejectFile(rejects_path) as rejects, typed_errors(store.label):
        given = columns_of(ds)
        store.columns.check_schema(given)
        store.check_columns(given)
        screening = screen(ds, store.columns, rejects)
        good = screening.rows - sum(rejects.counts.values())
        missing = store.drop_present(keep_good(ds, store.columns, screening))
        candidates = _gather(missing.map_batches(_draw, batch_format="pyarrow", batch_size=None))
        if candidates is None:
            return Estimate(screening.rows, rejects.counts, rejects.path, good, 0, 0, 0, 0.0, 0.0, 0)
        to_write = int(pc.sum(candidates[_BLOCK_ROWS]).as_py())
        size = min(_SAMPLE * workers.concurrency, _MAX_SAMPLE)
        chosen = np.sort(np.random.default_rng(0).permutation(candidates.num_rows)[:size])
        sample = candidates.drop_columns(_BLOCK_ROWS).take(pa.array(chosen))
        tally = Tally()
        # All workers at the same time, as in the run: those of one machine slow each other down.
        share = replace(workers, batch_size=min(workers.batch_size, -(-len(sample) // workers.concurrency)))
        embed(ray.data.from_arrow(sample), store, share, tally).materialize()
        reports, _ = tally.read()
    texts = sum(report.texts for report in reports)
    seconds = sum(report.seconds for report in reports)
    rate = texts / seconds * workers.concurrency if seconds else 0.0
    row_bytes = sample.drop_columns([c for c in (store.columns.vector,) if c in sample.column_names]).nbytes / len(
        sample
    )
    return Estimate(
        rows=screening.rows,
        rejected=rejects.counts,
        rejects=rejects.path,
        already_there=good - to_write,
        to_write=to_write,
        sample=len(sample),
        tokens=round(sum(report.tokens for report in reports) / len(sample) * to_write),
        texts_per_second=rate,
        seconds=to_write * texts / len(sample) / rate if rate else 0.0,
        disk_bytes=round(to_write * (row_bytes + store.columns.dimension * _FLOAT_BYTES)),
    )


def _draw(rows: pa.Table) -> pa.Table:
    """Return some rows of a block, with its row count in a column: one pass both samples and counts."""
    chosen = np.sort(np.random.default_rng(rows.num_rows).permutation(rows.num_rows)[:_PER_BLOCK])
    counts = pa.array([rows.num_rows if row == 0 else 0 for row in range(len(chosen))], pa.int64())
    return rows.take(pa.array(chosen)).append_column(_BLOCK_ROWS, counts)


def _gather(ds: Dataset) -> pa.Table | None:
    batches = [batch for batch in iterate(ds) if batch.num_rows]
    return pa.concat_tables(batches, promote_options="permissive") if batches else None
