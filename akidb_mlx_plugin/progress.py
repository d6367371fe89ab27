"""Progress on standard error, or in a notebook: everything that draws a bar draws it through here.

On a terminal and in a notebook with ipywidgets it is rich, in a notebook without them tqdm, in plain text, where rich
would draw nothing but a warning. Imported only when needed.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
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
    """Draw a bar with count, rate and time left.

    Args:
        label: text before the bar.
        total: number of items; None if unknown, which hides the time left.
    Yields:
        A thread-safe function to call with each number of items done.
    """
    if is_plain_notebook():
        with _text_bar(label, total) as advance:
            yield advance
        return
    with make_progress() as progress:
        task = progress.add_task(label, total=total)
        try:
            yield lambda count: progress.advance(task, count)
        finally:
            # A terminal is redrawn at the end; a notebook's widget is not, and would stop short.
            progress.refresh()


@contextmanager
def _text_bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    from threading import Lock

    from tqdm.std import tqdm

    # Counts from several threads; tqdm's own lock guards only its drawing.
    counting = Lock()
    with tqdm(total=total, desc=label, file=sys.stderr, ncols=80) as bar:

        def advance(count: int) -> None:
            with counting:
                bar.update(count)

        yield advance


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show a text on standard error, with a spinner where one can move, while something of unknown length runs."""
    if is_plain_notebook():
        sys.stderr.write(f"{text} …\n")
        yield
        return
    with Console(stderr=True).status(text):
        yield


def import_tqdm_quietly() -> None:
    """Import `tqdm.auto` before huggingface_hub does.

    In a notebook without ipywidgets it warns that it falls back to text. Nothing is wrong then, so that this first
    import, and no other, is kept quiet.
    """
    if is_plain_notebook() and "tqdm.autonotebook" not in sys.modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            importlib.import_module("tqdm.auto")


def is_notebook() -> bool:
    """Return whether output goes to a notebook."""
    return Console(stderr=True).is_jupyter


def is_plain_notebook() -> bool:
    """Return whether output goes to a notebook that cannot show widgets."""
    return is_notebook() and importlib.util.find_spec("ipywidgets") is None
