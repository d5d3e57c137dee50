"""Makers that cost nothing, for tests of planning and execution: they write what they were given."""

import json
import os
import signal
import time

from harness.config.checks import SettingsError
from harness.runtime import progress


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own, which is how it is known."""


def make(settings, inputs, out, machine):
    """Writes its settings; `settings["do"]` makes it fail, die, wait or report first."""
    do = settings.get("do")
    if do == "raise":
        raise RuntimeError("the weights caught fire\nsecond line")
    if do == "out of memory":
        raise OutOfMemoryError("CUDA out of memory")
    if do == "refuse":
        raise SettingsError("corpus.path='x' cannot be run: there is no such file.")
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait":
        for step in range(600):
            progress.report(step, 600, loss=1.0)
            time.sleep(0.1)
    (out / "made.json").write_text(json.dumps({"settings": settings.get("number"), "inputs": sorted(inputs)}))
    return {"cost": {"trained_tokens": 1, "flops": 1.0}}
