"""The bars: what is compared, how well it must do, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pairs import Ratio


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        key: for `--only`.
        what: in words.
        required: the figure must be at least this, or below it; None: shown for information.
        wished: what it should be.
        unit: of the figure; "x" is a ratio of speeds, of which more is better, of anything else less is.
    """

    key: str
    what: str
    required: float | None = None
    wished: float | None = None
    unit: str = "x"

    @property
    def more_is_better(self) -> bool:
        """Which way is good."""
        return self.unit == "x"

    def met_by(self, figure: float) -> bool | None:
        """Say whether a figure meets it; None where nothing is required."""
        if self.required is None:
            return None
        return figure >= self.required if self.more_is_better else figure < self.required

    def __str__(self) -> str:
        if self.required is None:
            return ""
        if self.unit == "x":
            return f"≥ {self.required:g}x, aim {self.wished:g}x"
        aim = f", aim {self.wished:g}" if self.wished is not None else ""
        return f"< {self.required:g}{aim} {self.unit}"


@dataclass(frozen=True)
class Outcome:
    """What was found for one bar.

    Attributes:
        bar: which.
        ours: this package's figure, with its unit.
        peer: the other one's, with its name.
        figure: what is held against the bar; None: not measured.
        note: how it was measured, or why it was not.
        raw: everything that the figures were computed from.
    """

    bar: Bar
    ours: str = ""
    peer: str = ""
    figure: Ratio | None = None
    note: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None: not known, or nothing required."""
        return None if self.figure is None else self.bar.met_by(self.figure.median)

    def row(self) -> dict[str, str]:
        """Return it as a row of the table."""
        if self.figure is None:
            shown = "not measured"
        else:
            middle, low, high = (_rounded(value) for value in (self.figure.median, self.figure.low, self.figure.high))
            unit = "x" if self.bar.unit == "x" else f" {self.bar.unit}"
            shown = f"{middle}{unit} ({low} to {high})" if low != high else f"{middle}{unit}"
        met = {True: "yes", False: "no", None: ""}[self.met]
        return {
            "what": self.bar.what,
            "ours": self.ours,
            "peer": self.peer,
            "result": shown,
            "bar": str(self.bar),
            "met": met,
            "note": self.note,
        }


BARS = {
    bar.key: bar
    for bar in (
        Bar("chroma", "MiniLM, docstrings: against Chroma's default function", 5, 6),
        Bar(
            "sentence-transformers", "MiniLM, docstrings: against sentence-transformers, CPU, best batch size", 1.5, 2.2
        ),
        Bar("onnxruntime", "MiniLM, docstrings: against onnxruntime, length-sorted batches", 0.9, 1.0),
        Bar("mlx-embeddings", "MiniLM, docstrings: against mlx-embeddings' BERT, both with a real BLAS", 15, 25),
        Bar("mlx-embeddings-bare", "MiniLM, docstrings: against mlx-embeddings' BERT as installed"),
        Bar("query", "MiniLM, one query of 8 to 12 tokens: latency against sentence-transformers", 1.6, 3),
        Bar("qwen3", "Qwen3-0.6B shape, docstrings: against sentence-transformers, torch, float32", 1.8, 2.2),
        Bar("mlx-lm", "Qwen3-0.6B shape, docstrings: against mlx-lm, both with a real BLAS"),
        Bar("mlx-lm-bare", "Qwen3-0.6B shape, docstrings: against mlx-lm as installed"),
        Bar(
            "qwen3-query", "Qwen3-0.6B shape, one query of 12 tokens and its instruction: latency against torch", 2.5, 4
        ),
        Bar("gemma", "EmbeddingGemma-300M, docstrings: against sentence-transformers", 2, 2.5),
        Bar("scaling", "MiniLM: texts per second at 4,000 texts over that at 400", 0.95, 1.0),
        Bar("load", "Full-shape 4-bit Qwen3-0.6B: start of the process to first vector", 10, 4, "s"),
        Bar("import", "import akidb_mlx_chroma beyond import chromadb itself", 50, 20, "ms"),
        Bar("memory", "MiniLM: peak memory for 20,000 docstrings over that for 1,000, in one call", 1.2, 1.05, "times"),
        Bar("memory-streamed", "The same from file to file, by akidb-mlx embed", 1.2, 1.05, "times"),
        Bar("qps", "MiniLM, 50 queries per second, open loop: P95", 25, None, "ms"),
        Bar("qwen3-qps", "Qwen3-0.6B 4-bit, 50 queries per second, open loop, on a GPU: P95", 25, None, "ms"),
    )
}


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
