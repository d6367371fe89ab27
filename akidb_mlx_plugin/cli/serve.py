"""`akidb-mlx serve`: one model for many processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from akidb_mlx_plugin.cli.output import JsonOption, print_error, print_rows
from akidb_mlx_plugin.errors import InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.installation import install_command

if TYPE_CHECKING:
    from akidb_mlx_plugin.serving.running import RunningServer

_DEFAULT_PORT = 8321
_TOKEN_VARIABLE = "AKIDB_SERVE_TOKEN"
# How a detached server learns the file that its output goes to.
_LOG_VARIABLE = "AKIDB_SERVE_LOG"
_LOOK_S = 0.1
_STOP_S = 60.0

app = typer.Typer(invoke_without_command=True)


def _to_seconds(text: str) -> float:
    from akidb_mlx_plugin.durations import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.callback()
def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Short name, org/repo or checkpoint folder; repeatable. Default: as configured."),
    ] = None,
    reranker: Annotated[list[str] | None, typer.Option(help="Reranker, for /v1/rerank; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Address; another than loopback needs AKIDB_SERVE_TOKEN.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one. Default: 8321, or none with --uds.")
    ] = None,
    uds: Annotated[Path | None, typer.Option(metavar="PATH", help="Unix socket that only you may use.")] = None,
    idle_exit: Annotated[
        float, typer.Option(parser=_to_seconds, metavar="DURATION", help="Stop when idle for so long, such as 30m.")
    ] = -1.0,
    keep_alive: Annotated[
        float | None,
        typer.Option(parser=_to_seconds, metavar="DURATION", help="Free the weights when idle for so long."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file with the key 'embedding'.")
    ] = None,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest body of a request.")] = 32.0,
    drain: Annotated[
        float,
        typer.Option(parser=_to_seconds, metavar="DURATION", help="How long the last requests may take at the end."),
    ] = 30.0,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
) -> None:
    """Serve models to other processes: OpenAI's API for embeddings, Cohere's for rerankers, one queue for all clients.

    Our functions use a server where AKIDB_EMBEDDING__REMOTE__URL names it. A client must send the token in
    AKIDB_SERVE_TOKEN, if that is set. SIGTERM and Ctrl-C answer what is waiting, then stop.

    Example: akidb-mlx serve --model minilm-l6-v2 --keep-alive 5m
    """
    if context.invoked_subcommand is not None:
        return
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        raise InvalidInputError(f"serving needs two more packages: {install_command('serve')}")
    if detach:
        _start_detached()
        return
    from akidb_mlx_plugin.serving.models import ServedModels, configs_for
    from akidb_mlx_plugin.serving.running import announced
    from akidb_mlx_plugin.serving.server import ServerOptions, open_listeners, run_server
    from akidb_mlx_plugin.serving.sockets import address_of

    options = ServerOptions(
        host=host,
        port=_DEFAULT_PORT if port is None and uds is None else port,
        uds=uds,
        token=os.environ.get(_TOKEN_VARIABLE) or None,
        idle_exit_s=idle_exit,
        drain_s=drain if drain >= 0 else _STOP_S,
        max_body_bytes=round(max_body_mb * 1e6),
    )
    # A server of rerankers alone is fine; one that is told nothing serves the configured model.
    embedders: list[str | None] = [*(model or [])]
    if not embedders and not reranker:
        embedders = [None]
    models = ServedModels(configs_for(embedders, config, keep_alive), configs_for(reranker or [], config, keep_alive))
    names = [info.model for info in models.infos]
    with open_listeners(options) as listeners:
        addresses = [address_of(listener) for listener in listeners]
        with announced(addresses, names, os.environ.get(_LOG_VARIABLE, "")):
            typer.echo(f"serving {', '.join(names)} at {' and '.join(addresses)} (process {os.getpid()})", err=True)
            run_server(models, options, listeners)


@app.command()
def status(as_json: JsonOption = False) -> None:
    """List the servers that you run, with their addresses and models.

    Example: akidb-mlx serve status
    """
    from akidb_mlx_plugin.serving.running import list_running

    rows = [
        {
            "process": server.pid,
            "address": " ".join(server.addresses),
            "models": " ".join(server.models),
            "since": datetime.fromtimestamp(server.started).isoformat(" ", "seconds"),
            "log": server.log,
        }
        for server in list_running()
    ]
    if not rows and not as_json:
        typer.echo("no server is running", err=True)
        return
    print_rows(rows, as_json=as_json)


@app.command()
def stop(
    process: Annotated[int | None, typer.Argument(help="Number that `status` shows; needed if several run.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Stop every server.")] = False,
) -> None:
    """Stop a server after it has answered what is waiting.

    Example: akidb-mlx serve stop
    """
    from akidb_mlx_plugin.serving.running import list_running, stop_server

    servers = [server for server in list_running() if process in (None, server.pid)]
    if not servers:
        print_error("no server is running" if process is None else f"no server is running in process {process}")
        raise typer.Exit(1)
    if len(servers) > 1 and not every:
        raise InvalidInputError(
            f"{len(servers)} servers are running, in processes {', '.join(str(server.pid) for server in servers)}; "
            "name one, or stop --all"
        )
    for server in servers:
        stop_server(server, _STOP_S)
        typer.echo(f"stopped process {server.pid}", err=True)


def _start_detached() -> None:
    """Start the same command in the background, and return once clients can connect."""
    from akidb_mlx_plugin.serving.running import servers_dir

    folder = servers_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = folder / f"{datetime.now():%Y-%m-%d-%H%M%S}-{os.getpid()}.log"
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "akidb_mlx_plugin", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, _LOG_VARIABLE: str(log)},
        )
    server = _wait_until_listed(child, log)
    typer.echo(
        f"serving {', '.join(server.models)} at {' and '.join(server.addresses)} (process {server.pid}, log {log}); "
        "stop it with: akidb-mlx serve stop",
        err=True,
    )


def _wait_until_listed(child: subprocess.Popen[bytes], log: Path) -> RunningServer:
    from akidb_mlx_plugin.serving.running import list_running

    while True:
        found = [server for server in list_running() if server.pid == child.pid]
        if found:
            return found[0]
        if child.poll() is not None:
            words = log.read_text("utf-8", "replace").strip()
            log.unlink()
            raise ServiceUnavailableError(f"the server did not start: {words.removeprefix('akidb-mlx: ')}")
        time.sleep(_LOOK_S)
