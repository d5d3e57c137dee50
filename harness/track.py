"""Progress of the stage under way: one call for makers, one listener for whoever watches.

A maker calls `report`; with no listener it does nothing. Calls closer together than a quarter of a
second are dropped, except the last step's.

    track.report(step=120, total=300, loss=0.41)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MIN_SECONDS_BETWEEN_REPORTS = 0.25


@dataclass(frozen=True)
class Progress:
    """How far a stage is: steps of its total, the latest loss (nats per token), a short note."""

    step: int
    total: int
    loss: float | None = None
    note: str = ""


Listener = Callable[[Progress], None]

_listener: Listener | None = None
_last_report = 0.0


def report(step: int, total: int, loss: float | None = None, note: str = "") -> None:
    """Say how far the stage is; cheap enough for every step of a tiny model."""
    global _last_report
    if _listener is None:
        return
    now = time.monotonic()
    if step < total and now - _last_report < MIN_SECONDS_BETWEEN_REPORTS:
        return
    _last_report = now
    _listener(Progress(step, total, loss, note))


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send this process's reports to `listener` while the block runs."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
