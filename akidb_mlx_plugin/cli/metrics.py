"""`akidb-mlx metrics`: the service's metrics, and a dashboard for them."""

from __future__ import annotations

import typer

from akidb_mlx_plugin.cli.output import JsonOption, print_rows

app = typer.Typer(help="List the metrics, or print a Grafana dashboard for them.", no_args_is_help=True)


@app.command("list")
def list_metrics(as_json: JsonOption = False) -> None:
    """List the metrics with descriptions.

    Example: akidb-mlx metrics list
    """
    from akidb_mlx_plugin.metrics.specs import METRICS

    rows = [
        {"metric": spec.name, "type": spec.type, "labels": ",".join(spec.labels), "meaning": spec.help}
        for spec in METRICS
    ]
    print_rows(rows, as_json=as_json)


@app.command()
def dashboard() -> None:
    """Print a Grafana dashboard as JSON, for import.

    Example: akidb-mlx metrics dashboard > dashboard.json
    """
    from akidb_mlx_plugin.metrics import dashboard_json

    typer.echo(dashboard_json(), nl=False)
