"""What a GPU would launch for one forward pass, counted from MLX's graph on the CPU device.

MLX describes its fast functions (norms, rotary positions, attention) on a CPU by their parts; on a GPU each is one
kernel. Views are none. So the figures are close to, but not exactly, what Metal launches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx

# Primitives that only describe memory in another way.
VIEWS = {
    "Broadcast",
    "ExpandDims",
    "Flatten",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StopGradient",
    "Transpose",
    "Unflatten",
}
FAST = ("layer_norm", "rms_norm", "rope", "scaled_dot_product_attention")


def primitives(*outputs: mx.array) -> Counter[str]:
    """Return how often each primitive stands in the graph that lazy arrays are computed by."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "graph.dot")
        mx.export_to_dot(str(file), *outputs)
        return Counter(re.findall(r'\[label ?="([^"]+)", shape=rectangle\]', file.read_text()))


def count_kernels(*outputs: mx.array) -> int:
    """Return how many primitives of a graph are no views."""
    return sum(count for name, count in primitives(*outputs).items() if name not in VIEWS)


def _kind(value: Any) -> Any:
    return (value.shape, str(value.dtype)) if isinstance(value, mx.array) else value


def _blank(value: Any) -> Any:
    if not isinstance(value, mx.array):
        return value
    blank = mx.zeros(value.shape, value.dtype)
    mx.eval(blank)
    return blank


class Excess:
    """Kernels, and nodes, of the fast functions' parts beyond the one that each is on a GPU."""

    kernels = 0
    nodes = 0


@contextmanager
def fast_functions_counted_once() -> Iterator[Excess]:
    """Note, for every fast function that is called meanwhile, how many kernels and nodes its parts are too many."""
    excess = Excess()
    known: dict[Any, tuple[int, int]] = {}
    originals = {name: getattr(mx.fast, name) for name in FAST}

    def counted(name: str) -> Callable[..., Any]:
        original = originals[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            key = (name, *map(_kind, args), *((word, _kind(value)) for word, value in sorted(kwargs.items())))
            if key not in known:
                inputs, named = [_blank(x) for x in args], {word: _blank(x) for word, x in kwargs.items()}
                part = original(*inputs, **named)
                known[key] = count_kernels(part) - 1, count_nodes(part) - 1
            excess.kernels += known[key][0]
            excess.nodes += known[key][1]
            return original(*args, **kwargs)

        return call

    try:
        for name in FAST:
            setattr(mx.fast, name, counted(name))
        yield excess
    finally:
        for name, original in originals.items():
            setattr(mx.fast, name, original)


def count_nodes(*outputs: mx.array) -> int:
    """Return how many primitives a graph has, views included: each costs Python and MLX time to describe."""
    return sum(primitives(*outputs).values())


def peak_bytes(evaluate: Callable[[], Any]) -> int:
    """Return the most memory that MLX holds at once during an evaluation, beyond what it holds before."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    evaluate()
    return int(mx.get_peak_memory() - before)
