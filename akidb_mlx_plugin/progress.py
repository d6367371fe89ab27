"""A progress bar with rate and time left, on a terminal or in a notebook. Imported only when needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s")


def make_progress(*, transient: bool = False, refresh_per_second: float = 10) -> Progress:
    """Return a display of bars on standard error, with count, rate and time left.

    Args:
        transient: leave nothing behind when done, and draw nothing at all in a pipe.
        refresh_per_second: how often it is redrawn.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        # Time left while it runs, and time taken when it is done.
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=transient,
        refresh_per_second=refresh_per_second,
        # The rate is taken over two minutes: a chunk of a slow model may take half of one.
        speed_estimate_period=120,
        # In a pipe even an invisible bar would leave an empty line.
        disable=transient and not sys.stderr.isatty(),
    )


@contextmanager
def progress_bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draw a bar on standard error, or as a notebook widget.

    Args:
        label: text before the bar.
        total: number of items; None if unknown, which hides the time left.
    Yields:
        A thread-safe function to call with each number of items done.
    """
    with make_progress() as progress:
        task = progress.add_task(label, total=total)
        try:
            yield lambda count: progress.advance(task, count)
        finally:
            # A terminal is redrawn at the end; a notebook's widget is not, and would stop short.
            progress.refresh()
