"""`akidb-mlx config`: the effective configuration, and its sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from akidb_mlx_plugin.cli.output import JsonOption, print_json, print_rows

app = typer.Typer(help="Show the configuration.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Show the configuration."""


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file with the key 'embedding'.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print every key with its value and source: a default, the file, or an environment variable.

    Example: akidb-mlx config show --config config.yaml
    """
    from akidb_mlx_plugin.config import flatten_config, load_with_origins

    config, origins = load_with_origins(file)
    values = flatten_config(config)
    if as_json:
        print_json([{"key": key, "value": value, "source": origins[key]} for key, value in values.items()])
    else:
        print_rows([{"key": key, "value": _as_yaml(value), "source": origins[key]} for key, value in values.items()])


def _as_yaml(value: Any) -> str:
    """Format a value as in the file; a prompt in quotes, so that a trailing space is visible."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value == value.strip() and ": " not in value and "\n" not in value:
        return value
    return str(value) if isinstance(value, Path) else json.dumps(value, ensure_ascii=False)
