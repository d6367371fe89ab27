"""What `akidb-mlx bulk` runs once it has a cluster: here, or as a task in the cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import ray.data
from akidb_mlx_ray.dataset import Workers
from akidb_mlx_ray.estimate import Estimate, estimate
from akidb_mlx_ray.jsonl import read_jsonl
from akidb_mlx_ray.pipeline import Options, run, typed_errors
from akidb_mlx_ray.rejects import RejectFile
from akidb_mlx_ray.results import BulkResult
from ray.exceptions import RayError

from akidb_mlx_plugin.cli.bulk_target import ChromaTarget, LanceTarget
from akidb_mlx_plugin.config import ENVIRONMENT_PREFIX, EmbeddingConfig
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True)
class BulkJob:
    """Everything a run needs to know, wherever it is driven from.

    Attributes:
        paths: files of one format, absolute or in an object store.
        is_jsonl: whether that format is JSON lines; else it is Parquet.
        target: where the rows go.
        model, dimension, pooling: of the vectors. Default to the target's own, else the configuration's.
        on, text_column, vector_column: where a row's parts are.
        columns: what to read. Defaults to everything.
        workers: the actors that embed.
        strict, rejects: as for `write_lancedb`.
        dry_run: plan the run instead of running it.
    """

    paths: list[str]
    is_jsonl: bool
    target: LanceTarget | ChromaTarget
    model: str | None
    dimension: int | None
    pooling: str | None
    on: str
    text_column: str
    vector_column: str
    columns: list[str] | None
    workers: Workers
    strict: bool
    rejects: Path
    dry_run: bool

    def run(self) -> Estimate | BulkResult:
        """Run the job in the connected cluster; raises as `write_lancedb`."""
        # First, because reading through the input takes long.
        given = (self.model, self.dimension, self.pooling)
        config = None
        if any(value is not None for value in given):
            config = EmbeddingConfig.from_arguments(self.model, dimension=self.dimension, pooling=self.pooling)
        target = self.target.open(config, on=self.on, text_column=self.text_column, vector_column=self.vector_column)
        with typed_errors("the input"):
            ds = self._read()
        if self.dry_run:
            return estimate(ds, target, self.workers, self.rejects)
        return run(ds, target, self.workers, Options(self.strict, self.rejects))

    def _read(self) -> Dataset:
        mixed = (self.on, self.text_column)
        ds = read_jsonl(self.paths, mixed, self.columns) if self.is_jsonl else _read_parquet(self.paths)
        if self.columns is None:
            return ds
        present = ds.columns() or []
        own = (self.on, self.text_column, self.vector_column)
        if unknown := [name for name in self.columns if name not in present and name not in own]:
            raise InvalidInputError(f"--columns {unknown[0]}: the rows have {', '.join(present)}")
        return ds.select_columns([name for name in self.columns if name in present])


def _read_parquet(paths: list[str]) -> Dataset:
    try:
        ds = ray.data.read_parquet(paths)
        ds.schema()  # which reads what makes a file a Parquet file
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"cannot read {', '.join(paths[:4])}: {error}") from error
    return ds


def run_through_client(job: BulkJob) -> Estimate | BulkResult:
    """Run the job as a task in the cluster: Ray Data cannot be driven from outside, through ray://.

    The side file is returned from there. Folders are this machine's, which the nodes must see too, and settings come
    from this machine's environment.

    Raises:
        EmbeddingError: the cluster could not run it; and as `BulkJob.run`.
    """
    with RejectFile(job.rejects):
        pass  # rejected here rather than after the run
    model = os.path.abspath(os.path.expanduser(job.model)) if job.model and job.model[0] in ".~" else job.model
    job = replace(job, model=model, target=job.target.absolute())
    settings = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    try:
        outcome, rejected = ray.get(ray.remote(num_cpus=0)(_run_apart).remote(job, settings))
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EmbeddingError(
            f"the cluster could not run it: {reason}; its nodes need the same version of "
            "akidb-mlx-plugin[ray] as this machine"
        ) from error
    if rejected is not None:
        job.rejects.write_bytes(rejected)
    if isinstance(outcome, EmbeddingError):
        raise outcome
    made: Estimate | BulkResult = outcome
    return replace(made, rejects=job.rejects) if made.rejects else made


def _run_apart(
    job: BulkJob, settings: Mapping[str, str]
) -> tuple[Estimate | BulkResult | EmbeddingError, bytes | None]:
    """Return a job's result under an environment's settings, or its error, and the content of its side file."""
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        del os.environ[name]
    os.environ.update(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rejected.jsonl"
        outcome: Estimate | BulkResult | EmbeddingError
        try:
            outcome = replace(job, rejects=path).run()
        except EmbeddingError as error:
            # Its message is read where the file has the requested name.
            error.args = tuple(str(part).replace(str(path), str(job.rejects)) for part in error.args)
            outcome = error.with_traceback(None)
        return outcome, path.read_bytes() if path.exists() else None
