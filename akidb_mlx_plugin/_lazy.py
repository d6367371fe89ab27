"""Import a package's names when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def import_when_asked(
    package: str, modules: Mapping[str, str], *, framework: str = "", install: str = ""
) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: its name.
        modules: the module of each name, within the package.
        framework: what these modules import and this package does not depend on.
        install: what pip calls it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(f"{package}.{modules[name]}")
        except ModuleNotFoundError as error:
            if not framework or (error.name or "").partition(".")[0] != framework.partition(".")[0]:
                raise
            raise missing_framework(package, framework, install) from error
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def missing_framework(package: str, framework: str, install: str) -> ModuleNotFoundError:
    """Return the error for a framework that is not installed.

    Args:
        package: what needs it.
        framework: the name that it is imported by.
        install: what pip calls it.
    """
    return ModuleNotFoundError(
        f"{package} needs {framework}, which is not installed: pip install {install}", name=framework
    )
