"""A server's job: starts what the cluster file says, tells where it listens, and ends with the last job that asks it.

    python -m harness.execution.slurm.server_job NAME --submission <store>/submissions/<name>/submission.json

Exit code 0: nobody needs it any more. 1: it could not be started, or died; the last line says why. 75: stopped; told
so by SIGUSR2 it puts itself back into Slurm's queue while it is needed. The server's
own output is beside the job's, in the submission's folder.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError, refuse
from harness.config.cluster import Serve
from harness.execution.slurm.model_servers import Server, wanted
from harness.execution.slurm.squeue import ask
from harness.execution.slurm.submissions import read_note
from harness.execution.slurm.task import requeue
from harness.runtime import preemption
from harness.runtime.processes import end_group, free_port
from harness.store.store import Store
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.discovery import address_file, answers, read_address, write_address
from harness.teachers.http_endpoint import HttpEndpoint

STEP_SECONDS = 0.5
SIGNAL_SECONDS = 1.0  # Slurm tells the processes of a job one after the other


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one of the models of a submission."""
    parser = argparse.ArgumentParser(prog="python -m harness.execution.slurm.server_job", description=__doc__)
    parser.add_argument("name", help="of the server's job")
    parser.add_argument("--submission", type=Path, required=True, help="the frozen submission that wants it")
    given = parser.parse_args(arguments)
    return ServerJob(given.name, given.submission).run()


def run(name: str, submission: str) -> None:
    """What submitit starts: the same, and a failure is this process's exit code."""
    code = ServerJob(name, Path(submission)).run()
    if code:
        sys.stdout.flush()
        os._exit(code)  # submitit would otherwise write the exit down as a result


class ServerJob:
    """One model served by one child process, told of on one page."""

    def __init__(self, name: str, submission: Path) -> None:
        written = json.loads(submission.read_text())
        self.name, self.store = name, Store(Path(written["store"]))
        self.server = Server(**written["servers"][name])
        self.key = self.server.key
        self.settings = Serve.of(written["cluster"]["serve"])
        self.restarts = written["cluster"]["restarts"]
        self.page = address_file(self.store, self.key)
        self.job = os.environ.get("SLURM_JOB_ID")
        self.signal: int | None = None
        """The one that asked the job to stop."""
        self.said = ""
        """The last refusal of the queue, which is told once."""
        self.log = submission.parent / "slurm" / f"{self.job or os.getpid()}_server_log.out"

    def run(self) -> int:
        """Serve until nobody needs it, it is stopped, or it fails; returns the exit code."""
        with preemption.stoppable_between(), preemption.polling():
            try:
                self._serve()
            except preemption.Preempted as stopped:
                print(f"harness: {stopped}", flush=True)
                return self._stopped()
            except SettingsError as error:
                self._tell(failed=str(error))  # before the note goes, so that no successor's page is written over
                self._give_up_note()
                print(f"harness: {error}", flush=True)
                return 1
        return 0

    def _serve(self) -> None:
        if self._over():
            return
        self._tell()
        port = free_port()
        url = f"http://{_own_address()}:{port}"
        command = self.settings.words(self.server.model, self.server.revision, port)
        with self._child(command) as child:
            self._until_ready(child, url)
            self._tell(url=url)
            print(f"harness: {self.server.model} is served at {url}", flush=True)
            while True:
                self._watch(child, self.settings.look_seconds)
                if self._over():
                    return

    def _until_ready(self, child: "subprocess.Popen[bytes]", url: str) -> None:
        """Wait until the server answers with the model; raises SettingsError where it serves another, or is late."""
        deadline = time.monotonic() + 60 * self.settings.ready_minutes
        while not answers(url, self.server.api_key_env):
            if time.monotonic() > deadline:
                reason = f"the server did not answer at {url} within {self.settings.ready_minutes:g} minutes"
                raise self._failed(reason, "slurm.serve.ready_minutes gives it more")
            self._watch(child, STEP_SECONDS)
        _ = CompletionsClient(HttpEndpoint(url, self.server.api_key_env), self.server.model).context

    def _watch(self, child: "subprocess.Popen[bytes]", seconds: float) -> None:
        """Let the time pass; raises Preempted where the job is stopped, SettingsError where the server has died."""
        end = time.monotonic() + seconds
        while True:
            code = child.poll()
            if code is not None:
                time.sleep(SIGNAL_SECONDS)
            if preemption.asked():
                self.signal = preemption.received()  # the first, where the job's end brings another
                raise preemption.Preempted("the server was asked to stop")
            if code is not None:
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise self._failed(f"the server ended with exit code {code}: {' '.join(lines[-1].split())}")
            if (left := end - time.monotonic()) <= 0:
                return
            time.sleep(min(left, STEP_SECONDS))

    def _over(self) -> bool:
        """Whether nobody needs this server; then neither note nor page tells of it any more."""
        try:
            if self._own_page() and wanted(self.store, self.key):
                return False
            self._give_up_note()
            if self._own_page() and wanted(self.store, self.key):  # by a job that was sent a moment ago
                return False
        except (SettingsError, FileNotFoundError) as error:  # the queue does not answer, or cannot be asked from here
            if self.said != str(error):
                print(f"harness: {error}; the server stays until it can be asked", flush=True)
            self.said = str(error)
            return False
        if self._own_page():
            self.page.unlink(missing_ok=True)
        return True

    def _stopped(self) -> int:
        """After a signal: back into the queue where that was asked for and somebody needs the server."""
        again = self.signal == signal.SIGUSR2
        if again and self._over():
            return 0
        worn = again and int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= self.restarts
        if self._own_page():
            self._tell(**{"failed": f"it was stopped after {self.restarts} restarts"} if worn else {})
        if worn:
            self._give_up_note()
        if again:
            requeue(self.restarts)
        return preemption.EXIT_CODE

    def _own_page(self) -> bool:
        """Whether the page is still this job's: where another was sent for the same model, that one serves."""
        return (read_address(self.page) or {}).get("name") == self.name

    def _tell(self, **more: Any) -> None:
        said = {"name": self.name, "job": self.job, "model": self.server.model, "started": time.time()}
        write_address(self.page, **said, ready_minutes=self.settings.ready_minutes, **more)

    def _give_up_note(self) -> None:
        if (read_note(self.store, self.key) or {}).get("array") == self.name:
            (self.store.root / "jobs" / self.key).unlink(missing_ok=True)

    def _failed(self, reason: str, way_out: str = "") -> SettingsError:
        more = f"its output is in {self.log}"
        return refuse("slurm.serve.command", self.settings.command, reason, f"{way_out}; {more}" if way_out else more)

    @contextmanager
    def _child(self, command: Sequence[str]) -> "Iterator[subprocess.Popen[bytes]]":
        """The server's process, with all it starts in a group of its own, which ends with the block."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # the notice before a time limit goes to all processes of a job, and would kill one that knows nothing of it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            with open(self.log, "ab") as log:
                child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise self._failed(f"{command[0]} cannot be started ({error.strerror})") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        try:
            yield child
        finally:
            end_group(child)


def _own_address() -> str:
    """By which other nodes reach this one."""
    name = os.environ.get("SLURMD_NODENAME")
    if name is None:
        return socket.gethostname()
    said = ask("scontrol", "show", "node", name)
    return next((word[9:] for word in said.split() if word.startswith("NodeAddr=")), name)


if __name__ == "__main__":
    sys.exit(main())
