"""`akidb-mlx run`: run another program with this package's functions registered."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer


def run(
    program: Annotated[str, typer.Argument(metavar="MODULE|SCRIPT", help="A module, a .py file or a command.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="Arguments of the program.")] = None,
) -> NoReturn:
    """Run a Python program with the functions of Chroma and LanceDB registered, for programs that do not import them.

    Collections and tables store the name of the function that embeds their texts. A program that does not import
    akidb_mlx_chroma or akidb_mlx_lancedb does not know that function. Here both are imported first; the model
    loads with the first text. The program must be installed in the same Python environment as this package. Its output,
    errors and exit status are its own.

    Example: akidb-mlx run chroma-mcp --client-type persistent --data-dir ./chroma

    Example: akidb-mlx run my_script.py --verbose

    Example: akidb-mlx run package.module
    """
    # `akidb_mlx_plugin.__main__` runs it before this command line takes over signals, streams and errors.
    raise typer.BadParameter("put 'run' directly after akidb-mlx: akidb-mlx run MODULE|SCRIPT [ARGS]...")
