"""Preemption: how a running stage learns that it must stop, and the folder in which it keeps what it has done.

The attempt sets both for as long as it lasts. A maker that can continue later polls; any other maker is interrupted
by the exception that the signal raises. `training/checkpoints.py` and `store/partial_output.py` write into the folder.

    with preemption.stoppable(folder):         # the attempt; SIGTERM and SIGUSR2 now request a stop
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
"""What a scheduler or the worker pool sends before it kills a process."""
EXIT_CODE = os.EX_TEMPFAIL
"""Exit code of a process that stopped on request: started again, it continues."""

_folder: Path | None = None
_stop_requested = False
_received: int | None = None
_polled = False


# SystemExit is no Exception, so no `except Exception` of a maker or a library can swallow the stop.
class Preempted(SystemExit):
    """A stage stopped on request; ends the process with `EXIT_CODE`, and the next attempt continues."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.code = EXIT_CODE


def folder() -> Path | None:
    """The folder in which the running stage may keep checkpoints; None outside an attempt."""
    return _folder


def stop_requested() -> bool:
    """Whether a signal has asked the running stage to stop."""
    return _stop_requested


def received() -> int | None:
    """The signal that last requested a stop in this process, or None."""
    return _received


@contextmanager
def stoppable_between() -> Iterator[None]:
    """While the block runs, a signal raises Preempted in it unless the running stage polls.

    Signals reach Python's main thread only; in another thread this changes nothing.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, _request_stop) for number in SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not installed from Python, and cannot be installed again
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def stoppable(checkpoints: Path) -> Iterator[None]:
    """While the block runs, signals request that it stops, and it may keep what it has done in `checkpoints`.

    Raises Preempted at the end of a block that finished before it saw the request. Signals reach Python's main
    thread only; in another thread the folder is set and no signal arrives.
    """
    global _folder, _stop_requested
    assert _folder is None, "one attempt at a time"
    # A request that ended an earlier stage must not end this one. `_received` stays: a job reads it after the stage.
    _folder, _stop_requested = checkpoints, False
    try:
        with stoppable_between():
            yield
            if _stop_requested:
                # what the block made is kept; the caller must not begin another stage
                raise Preempted("stopped on request when the stage was done")
    finally:
        _folder = None


@contextmanager
def polling() -> Iterator[None]:
    """While the block runs, a signal only sets the flag that `stop_requested` returns; the block must read it."""
    global _polled
    # the former value returns at the end, since such blocks are nested
    before, _polled = _polled, True
    try:
        yield
    finally:
        _polled = before


def _request_stop(number: int, frame: Any) -> None:
    global _stop_requested, _received
    _stop_requested, _received = True, number
    if not _polled:
        # The exception arises wherever the main thread is. Code that must not be cut in two runs under `polling`.
        raise Preempted(f"stopped by {signal.Signals(number).name}")
