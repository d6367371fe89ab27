"""The command `akidb-mlx`; `python -m akidb_mlx_plugin` if the script is not on the path."""

from __future__ import annotations

import os
import signal
import sys

from akidb_mlx_plugin.errors import EmbeddingError


def main() -> None:
    """Run the command line; an interrupt while it is being imported ends it as cleanly as a later one."""
    if sys.argv[1:2] == ["run"] and len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
        _run_program(sys.argv[2], sys.argv[3:])
        return
    try:
        # Raised as an exception, so that partly written files are removed.
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        _prepare_streams()
        from akidb_mlx_plugin.cli import main as run

        run()
    except KeyboardInterrupt:
        # A second interrupt would end in a stack trace.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("akidb-mlx: interrupted\n")
        sys.exit(130)


def _run_program(program: str, arguments: list[str]) -> None:
    """Run another program; signals, streams and errors stay as Python has set them up for it."""
    from akidb_mlx_plugin.programs import find_program, import_adapters

    try:
        run = find_program(program, arguments)
        import_adapters()
    except EmbeddingError as error:
        from akidb_mlx_plugin.cli.output import print_error

        print_error(str(error))
        sys.exit(1)
    run()


def _prepare_streams() -> None:
    """Make standard output and error writable for every character, whatever they are.

    If the caller has closed one, the next file opened would take its descriptor and receive the output.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
