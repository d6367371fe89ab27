"""`akidb-mlx cache`: what the model cache holds, its size, and making room."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from akidb_mlx_plugin.cli.output import JsonOption, print_json, print_rows
from akidb_mlx_plugin.hub.cache import (
    CachedModel,
    cache_size_gb,
    list_cached_models,
    resolve_cache_dir,
)
from akidb_mlx_plugin.hub.eviction import cleanup_cache
from akidb_mlx_plugin.hub.migration import migrate_cache

DEFAULT_MAX_GB = 10.0

CacheDirOption = Annotated[
    Path | None, typer.Option("--cache-dir", help="The cache; default: AKIDB_MODEL_CACHE_DIR or ~/.cache/akidb/models.")
]

app = typer.Typer(help="See and shrink the model cache.", no_args_is_help=True)


def human_size(size_bytes: float) -> str:
    """Return a human-readable size, in powers of 1000 as disks and hubs count."""
    power = 0
    while size_bytes >= 999.5 and power < 4:
        size_bytes /= 1000
        power += 1
    digits = 1 if power and size_bytes < 99.95 else 0
    return f"{size_bytes:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


@app.command("list")
def list_command(cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """List the cached models and unfinished downloads, the longest unused first.

    Example: akidb-mlx cache list
    """
    models = list_cached_models(cache_dir, include_partial=True)
    print_rows([_row(model, as_json) for model in models], as_json=as_json)
    if not models and not as_json:
        typer.echo(f"no models in {resolve_cache_dir(cache_dir)}", err=True)


@app.command()
def size(cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """Print what the cache takes on disk.

    Example: akidb-mlx cache size
    """
    size_bytes = round(cache_size_gb(cache_dir) * 1e9)
    if as_json:
        print_json({"folder": str(resolve_cache_dir(cache_dir)), "size_bytes": size_bytes})
    else:
        typer.echo(f"{human_size(size_bytes)} in {resolve_cache_dir(cache_dir)}")


@app.command()
def clean(
    max_gb: Annotated[float, typer.Option("--max-gb", help="Shrink the cache to this size; 0 empties it.")] = (
        DEFAULT_MAX_GB
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    cache_dir: CacheDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the models unused for longest, but none that a process uses.

    Example: akidb-mlx cache clean --max-gb 2 --dry-run
    """
    removed = cleanup_cache(max_gb, cache_dir=cache_dir, dry_run=dry_run)
    print_rows([_row(model, as_json) for model in removed], as_json=as_json)
    if not as_json:
        freed = human_size(sum(model.size_bytes for model in removed))
        left = human_size(cache_size_gb(cache_dir) * 1e9)
        typer.echo(f"{'would free' if dry_run else 'freed'} {freed}; the cache holds {left}", err=True)


@app.command()
def migrate(cache_dir: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """Move models that earlier versions downloaded to the layout of huggingface_hub, each verified; copies nothing.

    They are found where they are, too. One that a process uses stays until that ends.

    Example: akidb-mlx cache migrate
    """
    moved, left = migrate_cache(cache_dir)
    rows = [_row(model, as_json) for model in list_cached_models(cache_dir) if model.folder in moved]
    print_rows(rows, as_json=as_json)
    for folder, reason in left.items():
        typer.echo(f"{folder} was not moved: {reason}", err=True)


def _row(model: CachedModel, as_json: bool) -> dict[str, Any]:
    """Return a model as a row, with sizes and times for people to read or programs to parse."""
    damaged = model.snapshot is not None and model.snapshot.damaged_files()
    state = "partial" if model.partial else "damaged" if damaged else "complete"
    if as_json:
        size_and_time = {"size_bytes": model.size_bytes, "last_used": model.last_used.isoformat()}
    else:
        size_and_time = {"size": human_size(model.size_bytes), "last_used": _local_minute(model.last_used)}
    return {
        "model": model.name,
        "revision": model.revision if as_json else model.revision[:23],
        "state": f"{state}, in use" if model.in_use else state,
        **size_and_time,
        "folder": str(model.folder),
    }


def _local_minute(when: datetime) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M")
