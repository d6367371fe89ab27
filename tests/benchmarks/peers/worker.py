"""One contender in a process of its own: it loads a model, embeds what standard input tells it to, and says how long.

    python -m peers.worker MODULE FOLDER --cores N [--blas LIBRARY]

Lines of JSON. First it says {"ready": true} or {"error": …}. A request names a JSON file with the texts; the answer has
the wall time of the whole call, or of each text where they go one by one, the processor time, and the peak of memory.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--blas", help="loaded before anything else, its symbols global")
    options = parser.parse_args()
    answer = _take_over_output()
    try:
        if options.blas:
            ctypes.CDLL(options.blas, mode=ctypes.RTLD_GLOBAL)
        embed = importlib.import_module(f"peers.{options.module}").load(options.folder, options.cores)
    except Exception as error:  # to the one who compares, whatever it is
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        answer(_measure(embed, json.loads(line)))


def _take_over_output() -> Callable[[dict[str, Any]], None]:
    """Return a function that writes a line to standard output; what libraries print goes to standard error."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    return answer


def _measure(embed: Callable[[list[str], int | None], Any], request: dict[str, Any]) -> dict[str, Any]:
    texts = json.loads(Path(request["texts"]).read_text(encoding="utf-8"))
    batch_size = request["batch_size"]
    calls = [[text] for text in texts] if request["apart"] else [texts]
    seconds, vectors = [], []
    cpu_begun = time.process_time()
    for call in calls:
        begun = time.perf_counter()
        result = embed(call, batch_size)
        seconds.append(time.perf_counter() - begun)
        vectors.append(result)
    cpu_seconds = time.process_time() - cpu_begun
    if request["save"]:
        import numpy as np

        np.save(request["save"], np.concatenate([np.asarray(some, dtype=np.float32) for some in vectors]))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """Return the peak of this process's memory; `getrusage` on Linux would tell the parent's if that is higher."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
