"""Progress of the running stage: makers report it, and at most one listener receives it.

A maker calls `report`, which does nothing without a listener. Reports less than a quarter of a second after the last
one are dropped, except that of the last step. `log` passes on every line of a training log, after it was written; a
fit that continues from a checkpoint passes its earlier lines on again.

    progress.report(step=120, total=300, loss=0.41)
    progress.log({"step": 120, "loss": 0.41})
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

MIN_SECONDS_BETWEEN_REPORTS = 0.25


@dataclass(frozen=True)
class Progress:
    """How far a stage is: steps of its total, the latest loss (nats per token), a short note."""

    step: int
    total: int
    loss: float | None = None
    note: str = ""


Listener = Callable[[Progress], None]
LineListener = Callable[[Mapping[str, Any]], None]

# of the module, so that callbacks deep in a trainer report without a listener among their parameters
_listener: Listener | None = None
_line_listener: LineListener | None = None
_last_report = 0.0
_last = Progress(0, 1)


def report(step: int, total: int, loss: float | None = None, note: str = "") -> None:
    """Report how far the stage is; cheap enough for every step of a tiny model. Raises what the listener raises."""
    global _last_report, _last
    if _listener is None:
        return
    now = time.monotonic()
    # the last step always passes: a view would otherwise show a finished stage short of its end
    if step < total and now - _last_report < MIN_SECONDS_BETWEEN_REPORTS:
        return
    _last_report, _last = now, Progress(step, total, loss, note)
    _listener(_last)


def note(text: str) -> None:
    """Report that the stage is where it was, with a note on what it waits for. Raises what the listener raises."""
    if _listener is not None:
        _listener(replace(_last, note=text))


def log(line: Mapping[str, Any]) -> None:
    """Pass on a line of the training log: `step` and what was measured at it."""
    if _line_listener is not None:
        _line_listener(line)


@contextmanager
def listen(listener: Listener, lines: LineListener | None = None) -> Iterator[None]:
    """Send this process's reports to `listener`, and lines of the log to `lines`, while the block runs."""
    global _listener, _line_listener, _last
    before = _listener, _line_listener
    _listener, _line_listener, _last = listener, lines, Progress(0, 1)
    try:
        yield
    finally:
        _listener, _line_listener = before
