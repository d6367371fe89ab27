"""The command `akidb-mlx`; `python -m akidb_mlx_plugin` where the script is not on the path."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line; an interrupt that comes before it is imported ends it as cleanly as a later one."""
    try:
        # As an exception, so that whoever holds a half-written file removes it.
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        _prepare_streams()
        from akidb_mlx_plugin.cli import main as run

        run()
    except KeyboardInterrupt:
        # Once more would end in a stack trace.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("akidb-mlx: interrupted\n")
        sys.exit(130)


def _prepare_streams() -> None:
    """Make standard output and error writable, whatever they are, with every character.

    Where the caller has closed one, the next file that is opened would take its place and get what is printed.
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
