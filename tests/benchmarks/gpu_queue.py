"""Queries at 50 a second on Apple GPUs, simulated: how long 95 of 100 take before and after the GPU layout changed.

    python tests/benchmarks/gpu_queue.py             # a table; no GPU is used, and no time passes
    python tests/benchmarks/gpu_queue.py --qps 100

Assumptions, none of them measured here:
- A pass takes the time to read the 4-bit weights once (248 MB), its tokens at the chip's rate for large products,
  3.6 µs for each kernel, and a fixed time to hand it over and wait for it.
- Rates, bandwidths and that fixed time are set so that a query of 16 tokens and the throughput by the queue come out as
  published for, or derived from, mlx-lm and other engines on these chips.
- Kernels of a pass are counted from MLX's graph (`tests/inference/test_gpu_counts.py`); "before" has 737, in one pass
  for each length that rows were rounded to, with rows rounded up to powers of two; "after" has 504 and one pass, padded
  by this package's own `pack_padded`.
- On an M2 "before" computes bfloat16, which that chip does in software, 1.8 times slower; "after" float16.
- Arrivals are independent of each other (Poisson), queries have 8 to 20 tokens, an instruction's keys and values are
  kept in both cases, and whatever waits when the GPU becomes free goes together, up to ten queries.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.table import Table

from akidb_mlx_plugin.benchmarks.load import poisson_arrivals
from akidb_mlx_plugin.benchmarks.summary import percentile
from akidb_mlx_plugin.inference.packing import pack_padded

_WEIGHT_BYTES = 248e6
_KERNEL_S = 3.6e-6
_BATCH = 10
_SECONDS = 600.0


@dataclass(frozen=True)
class Chip:
    """A chip by what a pass on it takes.

    Attributes:
        tokens_per_s: of large passes, in float16, or in bfloat16 where the chip has it.
        bytes_per_s: that weights are read at.
        handover_s: from the call to the first kernel, and from the last one to the answer.
        bfloat16_penalty: how much slower it computes bfloat16.
    """

    name: str
    tokens_per_s: float
    bytes_per_s: float
    handover_s: float
    bfloat16_penalty: float = 1.0

    def pass_s(self, tokens: int, kernels: int, *, slower: float = 1.0) -> float:
        """Return the time of one forward pass."""
        compute_s = tokens / self.tokens_per_s * slower
        return self.handover_s + _WEIGHT_BYTES / self.bytes_per_s + compute_s + kernels * _KERNEL_S


CHIPS = (
    Chip("M2", 3_200, 100e9, 0.5e-3, bfloat16_penalty=1.8),
    Chip("M3 Max", 12_300, 300e9, 2.5e-3),
    Chip("M5 Max", 51_000, 600e9, 4.5e-3),
)


def before(chip: Chip, lengths: Sequence[int]) -> float:
    """Return the time of a batch as it was packed before: a pass for each rounded length, rows a power of two."""
    rows = Counter(_rounded(length) for length in lengths)
    return sum(
        chip.pass_s(length * (1 << (count - 1).bit_length()), 737, slower=chip.bfloat16_penalty)
        for length, count in rows.items()
    )


def after(chip: Chip, lengths: Sequence[int]) -> float:
    """Return the time of a batch as `pack_padded` lays it out."""
    return sum(chip.pass_s(len(batch.ids), 504) for batch in pack_padded([[0] * length for length in lengths], 2048))


def _rounded(length: int) -> int:
    step = 8
    while length > 4 * step:
        step *= 2
    return -(-length // step) * step


def simulate(batch_s: Callable[[Sequence[int]], float], due_s: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Return the latency of every query, in seconds, on an engine that takes whatever waits when it becomes free."""
    latencies: list[float] = []
    waiting: deque[int] = deque()
    free_s, upcoming = 0.0, 0
    while upcoming < len(due_s) or waiting:
        if not waiting:
            free_s = max(free_s, due_s[upcoming])
        while upcoming < len(due_s) and due_s[upcoming] <= free_s:
            waiting.append(upcoming)
            upcoming += 1
        batch = [waiting.popleft() for _ in range(min(_BATCH, len(waiting)))]
        free_s += batch_s([lengths[i] for i in batch])
        latencies += [free_s - due_s[i] for i in batch]
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qps", type=float, default=50.0)
    qps = parser.parse_args().qps
    due_s = poisson_arrivals(qps, _SECONDS)
    generator = random.Random(0)
    lengths = [generator.randint(8, 20) for _ in due_s]
    table = Table(
        "chip", "one query, ms", "P50, ms", "P95, ms", "P99, ms", title=f"{qps:g} queries a second, simulated"
    )
    for chip in CHIPS:
        for label, way in (("before", before), ("after", after)):
            one = way(chip, [16])
            if one * qps / _BATCH >= 1:
                table.add_row(f"{chip.name}, {label}", f"{one * 1e3:.1f}", *["falls behind"] * 3)
                continue
            taken_ms = [1e3 * seconds for seconds in simulate(partial(way, chip), due_s, lengths)]
            figures = [percentile(taken_ms, share) for share in (50, 95, 99)]
            table.add_row(f"{chip.name}, {label}", f"{one * 1e3:.1f}", *(f"{figure:.1f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
