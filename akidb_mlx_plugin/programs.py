"""Run another program in this process, with this package's functions registered in the databases.

A program that does not import the adapters cannot embed with the collections and tables that store their functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError

# An adapter and the database that it needs.
_ADAPTERS = (("akidb_mlx_chroma", "chromadb", "Chroma"), ("akidb_mlx_lancedb", "lancedb", "LanceDB"))


def import_adapters() -> None:
    """Import the adapter of each installed database, which registers its function and loads no model.

    Raises:
        EmbeddingError: neither database is installed.
    """
    installed = [entry for entry in _ADAPTERS if importlib.util.find_spec(entry[1])]
    if not installed:
        raise EmbeddingError("neither Chroma nor LanceDB is installed, so there is no function to register")
    for adapter, _, name in installed:
        try:
            importlib.import_module(adapter)
        except ImportError as error:
            # The program may need only the other one.
            sys.stderr.write(f"akidb-mlx: the function for {name} is not registered: {error}\n")


def find_program(program: str, arguments: Sequence[str]) -> Callable[[], object]:
    """Find a program, and set `sys.argv` and `sys.path` as Python does before it starts one.

    Args:
        program: a Python file, the name of an installed command that is written in Python, or a module.
        arguments: its arguments.
    Returns:
        A function that runs it as `__main__`, and raises whatever it raises, SystemExit included.
    Raises:
        InvalidInputError: there is no such program.
    """
    if program.endswith(".py") or os.path.isfile(program):
        if not os.path.isfile(program):
            raise InvalidInputError(f"no file {program}")
        _set_start(program, arguments, os.path.dirname(os.path.abspath(program)))
        return lambda: runpy.run_path(program, run_name="__main__")
    if found := tuple(entry_points(group="console_scripts", name=program)):
        path = os.path.join(os.path.dirname(sys.executable), program)
        _set_start(path, arguments, os.path.dirname(path))
        return lambda: sys.exit(_load(found[0])())
    _set_start(program, arguments, os.getcwd())
    _check_module(program)
    return lambda: runpy.run_module(program, run_name="__main__", alter_sys=True)


def _load(entry: Any) -> Callable[[], Any]:
    loaded: Callable[[], Any] = entry.load()
    return loaded


def _set_start(name: str, arguments: Sequence[str], folder: str) -> None:
    """Set what Python sets before it starts a program: its arguments, and where it imports from first."""
    sys.argv[:] = [name, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _check_module(name: str) -> None:
    """Raise InvalidInputError if a module cannot be run, as clearly as possible."""
    try:
        spec = importlib.util.find_spec(name)
        is_package = spec is not None and spec.submodule_search_locations is not None
        runs = importlib.util.find_spec(f"{name}.__main__") if is_package else spec
    except (ImportError, ValueError) as error:
        raise InvalidInputError(f"no file, installed command or module {name!r} ({error})") from error
    if spec is None:
        raise InvalidInputError(
            f"no file, installed command or module {name!r} in {sys.prefix}; a program that is installed elsewhere "
            "needs this package there too"
        )
    if runs is None:
        own = ", ".join(entry.name for entry in entry_points(group="console_scripts") if _module(entry) == name)
        hint = f"its command {own}" if own else f"one of its modules, as {name}.MODULE"
        raise InvalidInputError(f"{name} is a package without __main__.py; run {hint}")


def _module(entry: Any) -> str:
    return str(entry.value).partition(":")[0].partition(".")[0]
