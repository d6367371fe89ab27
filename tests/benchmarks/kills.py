"""SIGKILL at random moments: every record is there once, nothing is lost, nothing half is taken for whole.

    python tests/benchmarks/kills.py                          # 20 kills of each kind; an hour or so
    python tests/benchmarks/kills.py download embed --kills 50

Of each kind one process works, then two at the same time. A round kills one of them, or both, at a random moment, and
looks at what is there; the same work once more has to make it whole. The kinds are modules beside this one: upserts and
re-embeddings in `kills_chroma` and `kills_lancedb`, `kills_download`, `kills_embed`, `kills_clean` for `cache clean`
beside a running model, and `kills_bulk`, which needs the extra "ray". The exit status is 1 where there was any fault.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The loopback hub and the like.
sys.path.append(str(Path(__file__).resolve().parents[1]))

KINDS = ("chroma", "lancedb", "download", "embed", "clean", "bulk")


def measure_kind(kind: str, kills: int, seed: int) -> Iterator[Any]:
    """Yield what became of so many kills of each sort of a kind."""
    from kills_rounds import measure_work

    module: Any = importlib.import_module(f"kills_{kind}")
    if hasattr(module, "measure_all"):
        yield from module.measure_all(kills, seed)
    else:
        yield from measure_work(module, kills, seed)


def main() -> int:
    """Kill, and print what was there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all of them if none is named")
    parser.add_argument("--kills", type=int, default=20, help="of each kind, and each number of processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = [kind.removeprefix("kills_") for kind in options.kinds]
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}")
    faults = 0
    for kind in kinds or [kind for kind in KINDS if kind != "bulk" or find_spec("ray")]:
        for tally in measure_kind(kind, options.kills, options.seed):
            faults += len(tally.faults)
            print(tally, flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
