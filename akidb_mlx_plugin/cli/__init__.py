"""The command `akidb-mlx`: one module per group of commands; heavy imports only when needed."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from akidb_mlx_plugin._version import __version__
from akidb_mlx_plugin.cli.bench import app as bench_commands
from akidb_mlx_plugin.cli.bulk import bulk as bulk_command
from akidb_mlx_plugin.cli.cache import app as cache_commands
from akidb_mlx_plugin.cli.config import app as config_commands
from akidb_mlx_plugin.cli.convert import convert as convert_command
from akidb_mlx_plugin.cli.demo import demo as demo_command
from akidb_mlx_plugin.cli.doctor import doctor as doctor_command
from akidb_mlx_plugin.cli.embed import embed as embed_command
from akidb_mlx_plugin.cli.metrics import app as metrics_commands
from akidb_mlx_plugin.cli.models import app as models_commands
from akidb_mlx_plugin.cli.output import PlainFormatter, print_error
from akidb_mlx_plugin.cli.reembed import reembed as reembed_command
from akidb_mlx_plugin.cli.run import run as run_command
from akidb_mlx_plugin.cli.search import search as search_command
from akidb_mlx_plugin.cli.serve import app as serve_commands
from akidb_mlx_plugin.errors import EmbeddingError

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="akidb-mlx",
    help="Text embeddings with MLX for Chroma and LanceDB.\n\n"
    "Try it: akidb-mlx demo 'how do I parse a date from a string'",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo_command)
app.command("doctor")(doctor_command)
app.command("embed")(embed_command)
app.command("search")(search_command)
app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run_command)
app.command("bulk")(bulk_command)
app.command("reembed")(reembed_command)
app.command("convert")(convert_command)
app.add_typer(serve_commands, name="serve")
app.add_typer(models_commands, name="models")
app.add_typer(cache_commands, name="cache")
app.add_typer(config_commands, name="config")
app.add_typer(metrics_commands, name="metrics")
app.add_typer(bench_commands, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log progress and details.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    # Per-request lines of the HTTP libraries would drown the progress bar.
    for noisy in ("httpx", "httpcore", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.INFO if verbose else logging.ERROR)


def main() -> None:
    """Run the command line; exit status 0 on success, 1 on an error, reported in one line, 2 on wrong usage.

    Raises:
        KeyboardInterrupt: for the caller, which exits with 130.
        SystemExit: with the exit status.
    """
    try:
        try:
            app(standalone_mode=True)
        finally:
            # Flushed here, where a full disk can still be reported.
            sys.stdout.flush()
    except EmbeddingError as error:
        print_error(str(error))
        sys.exit(1)
    except BrokenPipeError:
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        print_error(str(error))
        _drop_output()
        sys.exit(1)
    except Exception as error:
        # An error that neither this package nor its libraries expected; --verbose shows the stack trace.
        logger.info("unexpected error", exc_info=error)
        print_error(f"{type(error).__name__}: {error} (for a stack trace, put --verbose before the command)")
        sys.exit(1)


def _drop_output() -> None:
    """Discard remaining output: the reader is gone (`| head`), or the disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
