"""A server's job: starts the command of the cluster file, writes its address, and ends with the last job that needs it.

    python -m harness.execution.slurm.server_job NAME --submission <store>/submissions/<name>/submission.json

Exit code 0: no job needs the server any more. 1: it could not start, or ended; the last line says why. 75: stopped;
where the signal was SIGUSR2 the job puts itself back into Slurm's queue while it is needed. The server's own output is
beside the job's, in the submission's folder.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError, refuse
from harness.config.cluster import Serve
from harness.execution.slurm.model_servers import Server, wanted
from harness.execution.slurm.squeue import run_command
from harness.execution.slurm.submissions import read_entry
from harness.execution.slurm.task import requeue
from harness.runtime import preemption
from harness.runtime.processes import free_port, node_address
from harness.store.store import Store
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.discovery import address_file, read_address, write_address
from harness.teachers.http_endpoint import HttpEndpoint
from harness.teachers.server_process import ServerProcess, server_process

STEP_SECONDS = 0.5
SIGNAL_SECONDS = 1.0  # Slurm signals the processes of a job one after the other


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one of the models of a submission. Raises OSError or ValueError where the submission cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m harness.execution.slurm.server_job", description=__doc__)
    parser.add_argument("name", help="of the server's job")
    parser.add_argument("--submission", type=Path, required=True, help="the frozen submission that wants it")
    given = parser.parse_args(arguments)
    return ServerJob(given.name, given.submission).run()


def run(name: str, submission: str) -> None:
    """Started by submitit: as `main`, and a failure is this process's exit code.

    Raises OSError or ValueError where the submission cannot be read.
    """
    code = ServerJob(name, Path(submission)).run()
    if code:
        sys.stdout.flush()
        os._exit(code)  # submitit would otherwise write the exit down as a result


class ServerJob:
    """One model served by one child process; its address file says where."""

    def __init__(self, name: str, submission: Path) -> None:
        written = json.loads(submission.read_text())
        self.name, self.store = name, Store(Path(written["store"]))
        self.server = Server(**written["servers"][name])
        self.key = self.server.key
        self.settings = Serve.of(written["cluster"]["serve"])
        self.restarts = written["cluster"]["restarts"]
        self.address_file = address_file(self.store, self.key)
        self.job = os.environ.get("SLURM_JOB_ID")
        self.signal: int | None = None
        """The one that asked the job to stop."""
        self.queue_problem = ""
        """The last refusal of the queue, which is printed once."""
        self.log = submission.parent / "slurm" / f"{self.job or os.getpid()}_server_log.out"

    def run(self) -> int:
        """Serve until no job needs the server, it is stopped, or it fails; returns the exit code."""
        with preemption.stoppable_between(), preemption.polling():
            try:
                self._serve()
            except preemption.Preempted as stopped:
                print(f"harness: {stopped}", flush=True)
                return self._stopped()
            except SettingsError as error:
                # before the note goes: afterwards the file may be that of another server's job
                self._write_address(failed=str(error))
                self._remove_note()
                print(f"harness: {error}", flush=True)
                return 1
        return 0

    def _serve(self) -> None:
        # the job may have waited in the queue until all that needed it was made, or another took its place
        if self._over():
            return
        self._write_address()
        port = free_port()
        url = f"http://{_own_address()}:{port}"
        command = self.settings.words(self.server.model, self.server.revision, port)
        with ExitStack() as stack:
            try:
                process = stack.enter_context(server_process(command, self.log))
            except OSError as error:
                raise self._failed(f"{command[0]} cannot be started ({error.strerror})") from error
            self._wait_until_ready(process, url)
            self._write_address(url=url)
            print(f"harness: {self.server.model} is served at {url}", flush=True)
            while True:
                self._watch(process, self.settings.look_seconds)
                if self._over():
                    return

    def _wait_until_ready(self, process: ServerProcess, url: str) -> None:
        """Wait until the server answers with the model; raises SettingsError where it serves another, or is late."""
        key, seconds = self.server.api_key_env, 60 * self.settings.ready_minutes
        try:
            process.wait_until_ready(url, key, seconds, lambda seconds: self._watch(process, seconds))
        except TimeoutError as error:
            raise self._failed(str(error), "raise slurm.serve.ready_minutes") from error
        with closing(HttpEndpoint(url, key)) as endpoint:
            # the context is read for the check that comes with it: it raises where the server lists other models
            _ = CompletionsClient(endpoint, self.server.model).context

    def _watch(self, process: ServerProcess, seconds: float) -> None:
        """Let the time pass; raises Preempted where the job is stopped, SettingsError where the server has ended."""
        end = time.monotonic() + seconds
        while True:
            ended = process.ended()
            # one signal may end the server before it reaches this process; that is a stop, not a failure of the server
            if ended is not None:
                time.sleep(SIGNAL_SECONDS)
            if preemption.stop_requested():
                self.signal = preemption.received()  # the first, where the job's end brings another
                raise preemption.Preempted("the server was stopped on request")
            if ended is not None:
                raise self._failed(ended)
            if (left := end - time.monotonic()) <= 0:
                return
            time.sleep(min(left, STEP_SECONDS))

    def _over(self) -> bool:
        """Whether no job needs this server any more; if so, its note and its address file are removed."""
        try:
            if self._own_file() and wanted(self.store, self.key):
                return False
            # A submitter that found the note has registered its arrays before, so the second look sees them. One that
            # comes after the removal sends a server of its own.
            self._remove_note()
            if self._own_file() and wanted(self.store, self.key):
                return False
        except (SettingsError, FileNotFoundError) as error:  # the queue does not answer, or there is none
            if self.queue_problem != str(error):
                print(f"harness: {error}; the server stays until the queue answers", flush=True)
            self.queue_problem = str(error)
            return False
        if self._own_file():
            self.address_file.unlink(missing_ok=True)
        return True

    def _stopped(self) -> int:
        """After a signal: back into the queue where it was SIGUSR2 and the server is needed. Returns the exit code."""
        requeued = self.signal == signal.SIGUSR2
        if requeued and self._over():
            return 0
        worn = requeued and int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= self.restarts
        if self._own_file():
            # without a url the file says that a server starts, so stages wait for the restart; `failed` ends their
            # waiting
            self._write_address(**{"failed": f"it was stopped after {self.restarts} restarts"} if worn else {})
        if worn:
            self._remove_note()
        if requeued:
            requeue(self.restarts)
        return preemption.EXIT_CODE

    def _own_file(self) -> bool:
        """Whether the address file is still this job's; a job that was sent later for the same model takes it over."""
        return (read_address(self.address_file) or {}).get("name") == self.name

    def _write_address(self, **more: Any) -> None:
        content = {"name": self.name, "job": self.job, "model": self.server.model, "started": time.time()}
        write_address(self.address_file, **content, ready_minutes=self.settings.ready_minutes, **more)

    def _remove_note(self) -> None:
        if (read_entry(self.store, self.key) or {}).get("array") == self.name:
            (self.store.root / "jobs" / self.key).unlink(missing_ok=True)

    def _failed(self, reason: str, way_out: str = "") -> SettingsError:
        more = f"its output is in {self.log}"
        return refuse("slurm.serve.command", self.settings.command, reason, f"{way_out}; {more}" if way_out else more)


def _own_address() -> str:
    """The address by which other nodes reach this one."""
    name = os.environ.get("SLURMD_NODENAME")
    return socket.gethostname() if name is None else node_address(name, run_command("scontrol", "show", "node", name))


if __name__ == "__main__":
    sys.exit(main())
