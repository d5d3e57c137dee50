"""Own server: a completions server (vLLM and its like) that is started for one model, asked, and ended.

For evaluations that write much: `evals.server="vllm serve {model} --port {port}"`. The command is run without a
shell, on the machine of the stage, with the model's folder; it ends with the block, and so does all it started.

    with serving("vllm serve {model} --port {port}", folder) as server: server.complete(...)
"""

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.config.checks import SettingsError, refuse
from harness.runtime.processes import end_group, free_port
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.discovery import answers
from harness.teachers.http_endpoint import HttpEndpoint

READY_SECONDS = 1800.0
STEP_SECONDS = 0.5


@contextmanager
def serving(command: str, folder: Path) -> Iterator[CompletionsClient]:
    """The server of one model folder, ready.

    Raises SettingsError where it cannot be started, ends, or does not answer within half an hour.
    """
    port = free_port()
    log = Path(tempfile.gettempdir()) / f"harness-server-{os.getpid()}-{port}.log"
    words = [word.replace("{model}", str(folder)).replace("{port}", str(port)) for word in shlex.split(command)]

    def failed(reason: str) -> SettingsError:
        return refuse("evals.server", command, reason, f"its output is in {log}")

    try:
        with open(log, "wb") as output:
            child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        raise failed(f"{words[0]} cannot be started ({error.strerror})") from error
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_SECONDS
    try:
        while not answers(url, None):
            if child.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise failed(f"the server ended with exit code {child.returncode}: {' '.join(lines[-1].split())}")
            if time.monotonic() > deadline:
                raise failed(f"the server did not answer within {READY_SECONDS / 60:g} minutes")
            time.sleep(STEP_SECONDS)
        yield CompletionsClient(HttpEndpoint(url), str(folder))
    finally:
        end_group(child)
    log.unlink(missing_ok=True)  # kept where something went wrong
