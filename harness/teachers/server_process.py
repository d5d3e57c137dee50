"""Server process: a completions server (such as vLLM) as a child process, from its start to its end.

Two places start one: an evaluation that generates much text (`evals.server="vllm serve {model} --port {port}"`, by
`serving`), and a job that serves a teacher to other jobs (`execution/slurm/server_job.py`). The command is run
without a shell; the server, and all that it starts, ends with the block.

    with serving("vllm serve {model} --port {port}", folder) as client: client.complete(...)
"""

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from harness.config.checks import SettingsError, refuse
from harness.runtime.processes import free_port
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.discovery import answers
from harness.teachers.http_endpoint import HttpEndpoint

READY_SECONDS = 1800.0
STEP_SECONDS = 0.5
GRACE_SECONDS = 20.0  # for a server to end by itself


class ServerProcess:
    """A server that runs; `log` holds its output."""

    def __init__(self, child: "subprocess.Popen[bytes]", log: Path) -> None:
        self._child, self.log = child, log

    def ended(self) -> str | None:
        """How the server ended, with the last line of its output; None while it runs.

        Raises OSError where the log cannot be read.
        """
        code = self._child.poll()
        if code is None:
            return None
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
        return f"the server ended with exit code {code}: {' '.join(lines[-1].split())}"

    def wait_until_ready(
        self, url: str, api_key_env: str | None, seconds: float, pause: Callable[[float], None]
    ) -> None:
        """Return as soon as the server answers at `url`; `pause(seconds)` passes the time, and raises where it ended.

        Raises TimeoutError where it does not answer within `seconds`, and SettingsError where it refuses the key.
        """
        deadline = time.monotonic() + seconds
        while not answers(url, api_key_env):
            # `pause` raises where the server has ended, so this limit is for one that starts and never answers
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server did not answer at {url} within {seconds / 60:g} minutes")
            pause(STEP_SECONDS)


@contextmanager
def server_process(command: Sequence[str], log: Path) -> Iterator[ServerProcess]:
    """Start a server; it ends with the block, and so does every process of its group. Its output is added to `log`.

    Raises OSError where the command cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Slurm sends the notice before a time limit to all processes of a job; it would end a server that has no handler
    # for it while its results are still wanted. A blocked signal stays blocked in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with open(log, "ab") as output:
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield ServerProcess(child, log)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # to the whole group: a server's own workers may outlive it
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_SECONDS)


@contextmanager
def serving(command: str, folder: Path) -> Iterator[CompletionsClient]:
    """A client of the server that `command` starts for one model folder, ready.

    Raises SettingsError where the server cannot be started, ends, or does not answer within half an hour.
    """
    # taken and released before the server starts; another process could take it in between, and the server then ends
    # with an error
    port = free_port()
    log = Path(tempfile.gettempdir()) / f"harness-server-{os.getpid()}-{port}.log"
    words = [word.replace("{model}", str(folder)).replace("{port}", str(port)) for word in shlex.split(command)]

    def failed(reason: str) -> SettingsError:
        return refuse("evals.server", command, reason, f"its output is in {log}")

    def pause(seconds: float) -> None:
        if (ended := server.ended()) is not None:
            raise failed(ended)
        time.sleep(seconds)

    with ExitStack() as stack:
        try:
            server = stack.enter_context(server_process(words, log))
        except OSError as error:
            raise failed(f"{words[0]} cannot be started ({error.strerror})") from error
        url = f"http://127.0.0.1:{port}"
        try:
            server.wait_until_ready(url, None, READY_SECONDS, pause)
        except TimeoutError as error:
            raise failed(str(error)) from error
        endpoint = stack.enter_context(closing(HttpEndpoint(url)))
        yield CompletionsClient(endpoint, str(folder))
    log.unlink(missing_ok=True)  # kept where something went wrong
