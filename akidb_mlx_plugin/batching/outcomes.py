"""Giving requests their outcome, whatever their callers' callbacks do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import InvalidStateError
from contextlib import suppress

from akidb_mlx_plugin.batching.observer import QueueObserver
from akidb_mlx_plugin.batching.requests import Outcome, PendingRequest

logger = logging.getLogger(__name__)


def resolve_all(
    taken: Iterable[PendingRequest], outcome: Outcome, observer: QueueObserver, now: Callable[[], float]
) -> None:
    """Give requests their outcome; their callers' callbacks run here.

    A callback's error is logged once all are resolved, because a SystemExit on a worker's thread would cost the other
    callers their batch. On the main thread it may be the user's interrupt, and is re-raised.

    Args:
        taken: requests that nobody else resolves.
        outcome: vectors, an error, or None for a canceled request.
        observer: told about each.
        now: returns the time of the queue's clock.
    """
    raised: BaseException | None = None
    for pending in taken:
        try:
            _resolve(pending, outcome, observer, now)
        except BaseException as error:
            raised = raised or error
    if raised is None:
        return
    if threading.current_thread() is threading.main_thread():
        raise raised
    logger.error("the callback of a finished request raised %s", type(raised).__name__)


def _resolve(pending: PendingRequest, outcome: Outcome, observer: QueueObserver, now: Callable[[], float]) -> None:
    try:
        observer.request_ended(pending.request, now() - pending.submitted, outcome)
    finally:
        # The caller may cancel at this very moment.
        with suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                pending.future.set_exception(outcome)
            elif outcome is not None:
                pending.future.set_result(outcome)
