"""The benchmarks: that they account for everything and write what they say; never how fast anything is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from akidb_mlx_plugin.benchmarks.drift import Drift, Sample, measure_drift
from akidb_mlx_plugin.benchmarks.load import LoadRecord, OpenLoop, poisson_arrivals, uniform_arrivals
from akidb_mlx_plugin.benchmarks.process import descriptor_count, peak_bytes, thread_count
from akidb_mlx_plugin.benchmarks.summary import Latencies, Spread, percentile
from akidb_mlx_plugin.benchmarks.texts import first_lines, read_corpus, take_texts
from akidb_mlx_plugin.benchmarks.throughput import ThroughputRun, measure_throughput, sum_up
from akidb_mlx_plugin.benchmarks.tune import Cell, has_backlog, recommend
from akidb_mlx_plugin.cli.bench import app
from akidb_mlx_plugin.errors import InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.providers.mock import MockProvider


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(f"text number {i} about {'this and ' * (i % 7)}that" for i in range(80)))
    return file


def run(folder: Path, corpus: Path, *arguments: str, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--corpus", str(corpus), "--output", str(folder)])
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    return result


class TestNumbers:
    def test_percentile_is_the_nearest_rank(self) -> None:
        values = [float(i) for i in range(1, 101)]
        assert [percentile(values[::-1], share) for share in (0, 1, 50, 95, 99, 100)] == [1, 1, 50, 95, 99, 100]
        assert percentile([7.0], 99) == 7.0

    def test_nothing_has_no_percentiles(self) -> None:
        assert Latencies.of([]) == Latencies(None, None, None, None)
        with pytest.raises(ValueError, match="percentile of an empty sequence"):
            percentile([], 50)

    def test_spread(self) -> None:
        assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)

    def test_this_process_has_memory_threads_and_descriptors(self) -> None:
        assert 10e6 < peak_bytes() < 1e12
        assert thread_count() >= 1
        before = descriptor_count()
        with open(os.devnull):
            assert descriptor_count() == before + 1


class TestTexts:
    def test_a_small_corpus_is_repeated_without_repeating_a_text(self) -> None:
        texts = take_texts(["a", "b", "c"], 8)
        assert texts == ["a", "b", "c", "a 1", "b 1", "c 1", "a 2", "b 2"]
        assert take_texts(["a", "b"], 0) == []

    def test_a_file_has_one_text_per_line_and_always_the_same_order(self, corpus: Path) -> None:
        texts = read_corpus(corpus)
        assert texts == read_corpus(corpus)
        assert sorted(texts) == sorted(corpus.read_text().split("\n"))
        assert texts != corpus.read_text().split("\n")

    def test_first_lines(self) -> None:
        assert first_lines(["one\ntwo", "  three", "\n"]) == ["one", "three", "\n"]

    def test_an_empty_or_missing_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").write_text("\n \n")
        with pytest.raises(InvalidInputError, match="has no texts"):
            read_corpus(tmp_path / "empty")
        with pytest.raises(InvalidInputError, match="cannot read the corpus"):
            read_corpus(tmp_path / "missing")


class FakeTime:
    """A clock that moves only when someone sleeps, or as told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class TestOpenLoop:
    def send(
        self, time: FakeTime, submit: Callable[[int], Future[Any]], due_s: list[float], drain_s: float = 0.0
    ) -> LoadRecord:
        return OpenLoop(submit, due_s, now=time.now, sleep=time.sleep, drain_s=drain_s).run()

    def test_a_request_is_sent_when_it_is_due_though_the_one_before_is_not_answered(self) -> None:
        time, sent, futures = FakeTime(), [], []

        def submit(index: int) -> Future[Any]:
            sent.append(time.now_s - 100)
            futures.append(Future[Any]())
            if index == 2:
                for future in futures:
                    future.set_result(None)
            return futures[-1]

        record = self.send(time, submit, uniform_arrivals(10, 0.3))
        assert sent == pytest.approx([0, 0.1, 0.2])
        assert record.latency_ms == pytest.approx([200, 100, 0], abs=1e-6)
        assert record.lag_ms == pytest.approx([0, 0, 0], abs=1e-6)

    def test_latency_counts_from_the_time_due_when_the_generator_is_held_up(self) -> None:
        time = FakeTime()

        def submit(index: int) -> Future[Any]:
            if index == 0:
                time.sleep(0.25)
            future: Future[Any] = Future()
            future.set_result(None)
            return future

        record = self.send(time, submit, uniform_arrivals(10, 0.5))
        assert record.latency_ms == pytest.approx([250, 150, 50, 0, 0], abs=1e-6)
        assert record.lag_ms == pytest.approx([0, 150, 50, 0, 0], abs=1e-6)

    def test_every_request_is_accounted_for(self) -> None:
        def submit(index: int) -> Future[Any]:
            future: Future[Any] = Future()
            if index == 0:
                future.set_result(None)
            elif index == 1:
                raise ServiceUnavailableError("full")
            elif index == 2:
                future.set_exception(ServiceUnavailableError("late"))
            elif index == 3:
                future.cancel()
            return future

        record = self.send(FakeTime(), submit, uniform_arrivals(10, 0.6))
        assert (record.planned, record.sent, record.answered, record.unanswered) == (6, 6, 1, 2)
        assert record.failures == {"ServiceUnavailableError": 2, "CancelledError": 1}
        assert record.due_s == [0]
        assert not record.complete

    def test_answers_that_come_after_the_last_request_are_waited_for(self) -> None:
        late: Future[Any] = Future()
        timer = threading.Timer(0.1, late.set_result, [None])
        timer.start()
        record = self.send(FakeTime(), lambda index: late, [0.0], drain_s=30)
        assert record.complete

    def test_an_interrupt_keeps_what_there_is(self) -> None:
        time = FakeTime()

        def sleep(seconds: float) -> None:
            if time.now_s > 100.15:
                raise KeyboardInterrupt
            time.sleep(seconds)

        done: Future[Any] = Future()
        done.set_result(None)
        record = OpenLoop(lambda index: done, uniform_arrivals(10, 1), now=time.now, sleep=sleep).run()
        assert record.interrupted
        assert (record.planned, record.sent, record.answered) == (10, 3, 3)

    def test_arrivals(self) -> None:
        assert uniform_arrivals(50, 600)[-1] == pytest.approx(599.98)
        assert len(uniform_arrivals(50, 600)) == 30_000
        due_s = poisson_arrivals(50, 100)
        assert due_s == poisson_arrivals(50, 100) == sorted(due_s)
        assert 4700 < len(due_s) < 5300
        assert due_s[-1] < 100


class TestThroughput:
    def test_sizes_ascend_in_every_run_and_calls_are_cut(self) -> None:
        calls: list[int] = []

        class Counting(MockProvider):
            def embed_batch(self, request: Any) -> Any:
                calls.append(len(request.inputs))
                return super().embed_batch(request)

        runs = list(measure_throughput(Counting(), ["a b", "c d"], [5, 2], runs=2, per_call=2))
        assert [found.texts for found in runs] == [2, 5, 2, 5]
        assert calls == [2, 2, 2, 1] * 2
        assert [found.tokens for found in runs] == [4, 13, 4, 13]

    def test_sum_up_takes_medians_and_the_first_peak(self) -> None:
        found = [ThroughputRun(10, 50, seconds, peak) for seconds, peak in ((1.0, 7), (2.0, 9), (5.0, 9))]
        (result,) = sum_up(found)
        assert result.texts_per_second == Spread(5, 2, 10)
        assert result.tokens_per_second.median == 25
        assert result.peak_bytes == 7


class TestDrift:
    def drift(self, minutes: float = 20, **changes: Callable[[float], int]) -> Drift | None:
        held: dict[str, Callable[[float], int]] = {
            "resident_bytes": lambda at: 500_000_000 if at >= 300 else 100_000_000,
            "threads": lambda at: 9,
            "descriptors": lambda at: 5,
        } | changes
        seconds = int(minutes * 60)
        samples = [Sample(at, **{name: value(at) for name, value in held.items()}) for at in range(seconds)]
        return measure_drift(samples, seconds)

    def test_what_grows_while_it_settles_is_forgiven(self) -> None:
        drift = self.drift()
        assert drift is not None
        assert drift.settled_s == 300
        assert drift.violations == []

    def test_memory_that_grows_afterwards_is_not(self) -> None:
        drift = self.drift(resident_bytes=lambda at: 500_000_000 + int(50_000 * at))
        assert drift is not None
        assert drift.memory_drift == pytest.approx(0.0825, rel=0.05)
        assert "resident memory" in drift.violations[0]

    def test_threads_and_descriptors_gained(self) -> None:
        drift = self.drift(threads=lambda at: 9 + (at > 700), descriptors=lambda at: 5 + int(at / 100))
        assert drift is not None
        assert (drift.threads_gained, drift.descriptors_gained) == (1, 8)
        assert len(drift.violations) == 2

    def test_a_thread_that_lives_for_a_moment_is_no_leak(self) -> None:
        drift = self.drift(threads=lambda at: 9 + (int(at) % 10 == 0))
        assert drift is not None
        assert drift.threads_gained == 0

    def test_a_short_run_settles_in_proportion(self) -> None:
        drift = self.drift(minutes=1, resident_bytes=lambda at: 100 if at < 15 else 200)
        assert drift is not None
        assert (drift.settled_s, drift.memory_drift) == (15, 0)
        assert measure_drift([Sample(0.0, 1, 1, 1)], 60) is None


class TestRecommendation:
    def cell(self, batch_size: int, timeout_ms: float, p95_ms: float, *, keeps_up: bool = True) -> Cell:
        return Cell(batch_size, timeout_ms, Latencies(1.0, p95_ms, p95_ms, p95_ms), None, keeps_up)

    def test_lowest_p95_that_keeps_up(self) -> None:
        cells = [self.cell(1, 0, 5, keeps_up=False), self.cell(10, 50, 9), self.cell(50, 0, 7)]
        assert recommend(cells) is cells[2]

    def test_of_equals_the_smaller(self) -> None:
        cells = [self.cell(20, 0, 10.0), self.cell(5, 50, 10.2), self.cell(5, 10, 10.1), self.cell(1, 0, 11)]
        assert recommend(cells) is cells[2]

    def test_none_where_none_keeps_up(self) -> None:
        assert recommend([self.cell(1, 0, 5, keeps_up=False)]) is None
        assert recommend([]) is None

    def test_backlog_is_an_answer_that_comes_later_and_later(self) -> None:
        assert has_backlog([10.0 * i for i in range(100)])
        assert not has_backlog([20.0, 400.0] + [20.0] * 98)
        assert not has_backlog([20.0] * 90 + [90.0] * 10)
