"""The command `akidb-mlx`; `python -m akidb_mlx_plugin` where the script is not on the path."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an interrupt that comes before it is imported ends it as cleanly as a later one."""
    try:
        from akidb_mlx_plugin.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("akidb-mlx: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
