"""Start-up: Ctrl-C and SIGTERM while a command still imports its libraries, which takes tenths of a second.

stop_with_a_sentence()      # first thing in a command; it sets handlers of its own once it runs
"""

import os
import signal
import sys
from typing import Any

STOPPED = "\nharness: stopped; what is finished is kept, and the same command goes on from here."


def stop_with_a_sentence() -> None:
    """From now on the two signals end this process with one sentence and the shell's exit codes, 130 and 143."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> None:
    print(STOPPED, file=sys.stderr, flush=True)
    os._exit(128 + number)  # nothing runs yet that would have to be closed
