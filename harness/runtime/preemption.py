"""Preemption: how a stage under way learns that it must stop, and where it leaves what it has done so far.

An attempt makes both known while it lasts. A maker that can go on later polls; any other is ended where it
stands, by the exception that a signal raises. `checkpoints.py` writes what is left; here is only the ask.

    with preemption.stoppable(folder):         # the attempt; SIGTERM and SIGUSR2 now ask
        with preemption.polling():             # the maker
            if preemption.stop_requested():
                raise preemption.Preempted("stopped after step 120 of 300")
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What a scheduler, or the pool, sends before it takes a process away."""
EXIT_CODE = os.EX_TEMPFAIL
"""Exit code of a process that was asked to stop: run it again, it goes on."""

_folder: Path | None = None
_asked = False
_received: int | None = None
_polled = False


class Preempted(SystemExit):
    """A stage stopped because it was asked to; ends the process with `EXIT_CODE`, and the next attempt goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.code = EXIT_CODE


def folder() -> Path | None:
    """Where the stage under way may keep checkpoints; None outside an attempt."""
    return _folder


def stop_requested() -> bool:
    """Whether the stage under way was asked to stop."""
    return _asked


def received() -> int | None:
    """The signal that asked last in this process, or None."""
    return _received


@contextmanager
def stoppable_between() -> Iterator[None]:
    """While the block runs, signals end it by raising Preempted wherever no stage answers them itself.

    Signals reach Python's main thread only; in another thread nothing asks.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _ask) for number in SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def stoppable(checkpoints: Path) -> Iterator[None]:
    """While the block runs, signals ask it to stop, and what it does may be kept in the folder `checkpoints`.

    Raises Preempted at the end of a block that was asked too late to stop in the middle. Signals reach
    Python's main thread only; in another thread the folder is known and nothing asks.
    """
    global _folder, _asked
    assert _folder is None, "one attempt at a time"
    _folder, _asked = checkpoints, False
    try:
        with stoppable_between():
            yield
            if _asked:
                raise Preempted("asked to stop when it was done")
    finally:
        _folder = None


@contextmanager
def polling() -> Iterator[None]:
    """While the block runs, a signal only sets the flag that `asked` returns: the block looks at it itself."""
    global _polled
    before, _polled = _polled, True
    try:
        yield
    finally:
        _polled = before


def _ask(number: int, frame: Any) -> None:
    global _asked, _received
    _asked, _received = True, number
    if not _polled:
        raise Preempted(f"stopped by {signal.Signals(number).name}")
