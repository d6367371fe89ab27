"""The tree is the map: imports run one way through the folders of the package, and in no circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "akidb_mlx_plugin"
# From the top down; a module imports from its own layer and from those below.
LAYERS = (
    ("__main__", "programs"),
    ("cli",),
    ("benchmarks",),
    ("serving",),
    ("stores",),
    ("service", "cross_encoder"),
    ("model_queue", "encoding"),
    ("metrics",),
    ("batching",),
    ("providers",),
    ("inference",),
    ("checkpoints",),
    ("models",),
    ("nn",),
    ("runtime",),
    ("hub",),
    (
        *("config", "config_sections", "types", "errors", "validation", "progress", "display", "durations"),
        *("pooling_names", "installation", "argument_names"),
    ),
    ("_lazy", "_version"),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imported(tree: ast.AST) -> set[str]:
    """Return the modules of this package that some code imports, on its first line or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if is_module(whole) else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("akidb_mlx_plugin.")}


def layer(name: str) -> int:
    return DEPTH[name.split(".")[1]]


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downwards(file: Path) -> None:
    own = module_name(file)
    above = {name for name in imported(ast.parse(file.read_text("utf-8"))) if layer(name) < layer(own)}
    assert above == set()


@pytest.mark.slow
def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {}
    for file in FILES:
        tree = ast.parse(file.read_text("utf-8"))
        # A type checker's imports do not run, and a package's own `__init__` may list what lies in it.
        for node in list(ast.walk(tree)):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []
        own = module_name(file)
        graph[own] = {name for name in imported(tree) if file.name != "__init__.py" or not name.startswith(f"{own}.")}
    tuple(graphlib.TopologicalSorter(graph).static_order())
