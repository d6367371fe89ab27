"""The simulation of queries on Apple GPUs: `tests/benchmarks/gpu_queue.py`."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def test_whoever_waits_goes_together() -> None:
    import gpu_queue

    batches: list[list[int]] = []

    def one_second(lengths: list[int]) -> float:
        batches.append(list(lengths))
        return 1.0

    assert gpu_queue.simulate(one_second, [0.0, 0.5, 0.6, 5.0], [1, 2, 3, 4]) == pytest.approx([1.0, 1.5, 1.4, 1.0])  # type: ignore[arg-type]
    assert batches == [[1], [2, 3], [4]]


def test_ten_queries_in_one_pass_take_less_than_in_several() -> None:
    import gpu_queue

    queries = [8, 9, 11, 12, 12, 14, 15, 17, 19, 20]
    for chip in gpu_queue.CHIPS:
        assert gpu_queue.after(chip, queries) < gpu_queue.before(chip, queries) / 2
        assert gpu_queue.after(chip, [16]) < gpu_queue.before(chip, [16])
