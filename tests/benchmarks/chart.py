"""The chart of texts per second that README and docs show, from the figures of compare.py."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of the comparison that are of one kind, and what a reader calls the package beside this one.
_PEERS = {
    "onnxruntime": "onnxruntime, batches sorted by length",
    "sentence-transformers": "sentence-transformers (PyTorch)",
    "chroma": "Chroma's default function",
    "mlx-embeddings": "mlx-embeddings, with a fast BLAS",
    "mlx-embeddings-bare": "mlx-embeddings, as installed",
}
_OWN, _OTHER, _INK, _PAPER = "#2f6fae", "#a9b4bf", "#24292f", "#ffffff"
# Characters of the caption in a line.
_CAPTION = 120


def texts_per_second(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the texts per second of this package and of each peer that was measured, the fastest first."""
    rows = {row["key"]: row for row in results if row["key"] in _PEERS and row["peer"]}
    # One peer is measured beside this package without its BLAS, and has a row of its own.
    own = [_rate(row["ours"]) for key, row in rows.items() if not key.startswith("mlx-embeddings")]
    rates = {"akidb-mlx-plugin": max(own)} if own else {}
    rates |= {_PEERS[key]: _rate(row["peer"]) for key, row in rows.items()}
    return dict(sorted(rates.items(), key=lambda pair: -pair[1]))


def draw(figure: Figure, results: Iterable[Mapping[str, Any]], caption: str) -> None:
    """Draw one bar per package, named and with its figure, and the machine below."""
    rates = texts_per_second(results)
    figure.set_size_inches(8, 1.1 + 0.42 * max(len(rates), 1))
    figure.set_facecolor(_PAPER)
    axes = figure.add_subplot()
    places = range(len(rates) - 1, -1, -1)
    colours = [_OWN if name == "akidb-mlx-plugin" else _OTHER for name in rates]
    axes.barh(places, rates.values(), color=colours, height=0.72)
    for place, (name, rate) in zip(places, rates.items(), strict=True):
        weight = "bold" if name == "akidb-mlx-plugin" else "normal"
        shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
        axes.annotate(
            shown, (rate, place), (5, 0), textcoords="offset points", va="center", weight=weight, color=_INK
        )
    axes.set_yticks(places, rates)
    axes.set_xlim(0, max(rates.values(), default=1) * 1.1)
    axes.set_xticks([])
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    title = "Texts per second, all-MiniLM-L6-v2 on a CPU"
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12, color=_INK)
    lines = "\n".join(textwrap.wrap(caption, _CAPTION))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=8, color="#57606a")


def _rate(figure: str) -> float:
    return float(figure.split(" texts/s")[0])
