"""Real text that every machine has: the docstrings of the running interpreter's standard library."""

from __future__ import annotations

import ast
import importlib
import inspect
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Popular modules that are quick and harmless to import; those written in C have docstrings only in a running
# interpreter.
_MODULES = (  # noqa: SIM905 - a hundred quoted words would be harder to read
    "datetime time calendar zoneinfo json csv re string textwrap difflib unicodedata os os.path pathlib shutil "
    "tempfile glob fnmatch io zipfile tarfile gzip bz2 lzma zlib hashlib hmac secrets random math cmath statistics "
    "decimal fractions itertools functools operator collections collections.abc heapq bisect array copy pprint enum "
    "dataclasses types typing contextlib abc logging argparse configparser getpass subprocess threading queue "
    "multiprocessing concurrent.futures asyncio socket ssl select selectors urllib.parse urllib.request http.client "
    "email.message html html.parser xml.etree.ElementTree base64 binascii struct codecs pickle sqlite3 uuid "
    "ipaddress platform sys signal traceback warnings weakref gc inspect ast dis timeit unittest locale gettext "
    "shlex sched builtins"
).split()
_PER_MODULE = 60


@dataclass(frozen=True)
class Docstring:
    """A documented object.

    Attributes:
        name: its qualified name, unique in a corpus.
        text: its docstring.
    """

    name: str
    text: str


def popular_docstrings(limit: int) -> list[Docstring]:
    """Return the docstrings of popular functions, classes and methods, including those written in C.

    Args:
        limit: most to return; at most 60 per module, for variety.
    """
    found: dict[str, Docstring] = {}
    texts: set[str] = set()
    for module in _import_known():
        taken = 0
        for doc in _documented(module):
            if taken < _PER_MODULE and doc.text not in texts and doc.name not in found:
                texts.add(doc.text)
                found[doc.name] = doc
                taken += 1
                if len(found) == limit:
                    return list(found.values())
    return list(found.values())


def all_docstrings() -> Iterator[str]:
    """Yield every distinct docstring in the standard library's sources, in a fixed order, without importing them."""
    seen: set[str] = set()
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        if "site-packages" in file.parts or "test" in file.parts or "tests" in file.parts:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and text not in seen:
                    seen.add(text)
                    yield text


def _import_known() -> Iterator[ModuleType]:
    for name in _MODULES:
        try:
            yield importlib.import_module(name)
        except ImportError:  # missing from this interpreter's build, as sqlite3 or lzma may be
            continue


def _documented(module: ModuleType) -> Iterator[Docstring]:
    """Yield the docstrings of the module's public functions and classes, then of those classes' methods."""
    public = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    owned = [
        (f"{module.__name__}.{name}", value)
        for name in public
        if callable(value := getattr(module, name, None)) and not isinstance(value, ModuleType)
    ]
    for name, value in owned:
        yield from _own_docstring(name, value)
    for name, value in owned:
        if inspect.isclass(value):
            for method, member in vars(value).items():
                if not method.startswith("_"):
                    yield from _own_docstring(f"{name}.{method}", member)


def _own_docstring(name: str, value: Any) -> Iterator[Docstring]:
    text = getattr(value, "__doc__", None)
    if isinstance(text, str) and len(text.split()) >= 4:
        yield Docstring(name, inspect.cleandoc(text))
