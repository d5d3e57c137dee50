"""A worker of the local pool: `python -m harness.execution.launchers.worker <descriptor> <store> <machine>`.

It makes the stages that it receives through the inherited connection, one at a time, until the connection is closed.
When the process that started it is gone, it requests its own stop: no stage is trained whose result no process
waits for, and a checkpoint keeps what was trained.
"""

import json
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.config.machine import Machine
from harness.execution.attempt import attempt
from harness.store.store import Store

PARENT_CHECK_SECONDS = 0.5
GRACE_SECONDS = 60.0  # for the step under way and a checkpoint


def main(descriptor: int, root: Path, machine: Machine) -> None:
    """Make stages until the parent closes the connection."""
    connection = Connection(descriptor)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    store = Store(root)

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except OSError:  # the parent is gone, which is no failure of the stage
            os.kill(os.getpid(), signal.SIGTERM)

    while True:
        try:
            spec, maker = connection.recv()
        except (EOFError, OSError):
            return
        send(attempt(store, spec, maker, machine, send))


def _end_with_parent(parent: int) -> None:
    # a process whose parent has ended gets another parent
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Machine(**json.loads(sys.argv[3])))
