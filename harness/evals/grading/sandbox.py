"""Runs a Python program that a model generated, and reports whether it ran to its end; scores HumanEval and MBPP.

One process for one program, guarded from the inside (`_sandbox_child.py`) and watched from here:

    network     no socket of any kind, not even to this machine            seccomp
    processes   none can be started, so none outlives it; no signals       seccomp
    files       none can be made, written, moved or removed, by root too   seccomp and Landlock
                none is readable but Python's own and system libraries     Landlock
    memory      `memory_mb` of address space                               RLIMIT_AS
    time        `seconds` of processor time; three times that by the clock RLIMIT_CPU; killed from here
    secrets     an environment of its own, no inherited files, empty stdin, discarded output

Needs Linux 5.13 or later on x86_64 or aarch64, with Landlock enabled, and no privileges. Elsewhere no code is run:
`check_sandbox` refuses before any answer is generated.

    run("assert sorted([2, 1]) == [1, 2]", seconds=3, memory_mb=1024)     ProgramResult(passed=True, reason="")
"""

import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.config.checks import check_at_least, refuse
from harness.evals.grading import _sandbox_child
from harness.runtime.processes import available_cores

CLOCK_PER_PROCESSOR = 3  # so that a busy machine does not fail a quick program
START_SECONDS = 60
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

PROBE = """
import errno, os, socket
def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError as problem:
        assert problem.errno in (errno.EPERM, errno.EACCES), problem
    else:
        raise AssertionError(f"{action.__name__}{arguments} is possible")
refused(socket.socket)
refused(os.fork)
refused(os.kill, os.getppid(), 0)
refused(os.open, os.__file__, os.O_WRONLY)
refused(os.open, "/proc/self/environ", os.O_RDONLY)
refused(os.listdir, "/")
"""


@dataclass(frozen=True)
class ProgramResult:
    """The result of a program; `reason` is empty when it passed, else what it raised or how it ended."""

    passed: bool
    reason: str


@cache
def check_sandbox() -> None:
    """Try the guards on a harmless program; raises SettingsError, with the reason, where one does not hold."""
    found = run(PROBE, seconds=5, memory_mb=1024)
    if not found.passed:
        raise _no_sandbox(found.reason)


def run(program: str, seconds: int, memory_mb: int) -> ProgramResult:
    """Run `program`; it passed where its last line was reached, which exiting early or printing cannot feign.

    `seconds` is processor time (whole seconds, at least 1), `memory_mb` address space in MiB (at least 64). Raises
    SettingsError where a guard cannot be set up; the program has then not been started.
    """
    check_at_least("seconds", seconds, 1)
    check_at_least("memory_mb", memory_mb, 64)
    if not hasattr(os, "pidfd_open"):
        raise _no_sandbox(f"it runs {sys.platform}")
    token = secrets.token_hex(16).encode()
    (tokens, token_end), (answers, answer_end) = os.pipe(), os.pipe()
    descriptors = [tokens, token_end, answers, answer_end]
    try:
        # before the program starts: the child takes it from the pipe only after the last line, and no variable holds
        # it
        os.write(token_end, token)
        # a program that is killed writes nothing, and a read must not wait for it
        os.set_blocking(answers, False)
        child = _start(program, (os.getpid(), seconds, memory_mb, tokens, answer_end))
        try:
            # Wait for the end of the process, not of the pipe: another child of this process may hold the pipe open.
            process = os.pidfd_open(child.pid)
            descriptors.append(process)
            _wait([answers, process], START_SECONDS)
            if (greeting := _read(answers, len(_sandbox_child.READY))) != _sandbox_child.READY:
                why = greeting + _read(answers, _sandbox_child.REASON_BYTES)
                raise _no_sandbox(why.decode(errors="replace") or "the interpreter does not start")
            in_time = _wait([process], CLOCK_PER_PROCESSOR * seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            ended = child.wait()
        answer = _read(answers, _sandbox_child.REASON_BYTES)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    # the clock first: a program killed by this process looks like one that died by a signal
    if not in_time or ended == -signal.SIGXCPU:
        return ProgramResult(False, f"time limit of {seconds} s")
    if answer == token:
        return ProgramResult(True, "")
    if answer:
        return ProgramResult(False, "".join(c if c.isprintable() else " " for c in answer.decode(errors="replace")))
    return ProgramResult(False, f"killed by signal {-ended}" if ended < 0 else "ended before its last line")


def run_many(programs: Sequence[str], seconds: int, memory_mb: int, workers: int | None = None) -> list[ProgramResult]:
    """The result of each program, in order; `workers` run at once (default: one per core). Raises as `run` does."""
    # threads suffice: each waits for a process of its own
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        return list(pool.map(lambda program: run(program, seconds, memory_mb), programs))


def _start(program: str, arguments: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """The guarded interpreter, in a session of its own, with the program on its stdin."""
    *_, token, answer = arguments
    # a file in memory: a pipe would block on a program longer than its buffer, and a file on disk would need a name
    source = os.memfd_create("program")
    try:
        with os.fdopen(os.dup(source), "wb") as file:
            file.write(program.encode(errors="replace"))
        os.lseek(source, 0, os.SEEK_SET)
        return subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", str(Path(_sandbox_child.__file__)), *map(str, arguments)],
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # nothing else of this process's environment, which may hold keys; the interpreter may need its libraries'
            # path
            env=ENVIRONMENT | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            pass_fds=(token, answer),
            start_new_session=True,
        )
    finally:
        os.close(source)


def _wait(descriptors: list[int], seconds: float) -> bool:
    """Whether something can be read from one of them, or one ended, within `seconds`."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _read(pipe: int, most: int) -> bytes:
    """The bytes in a pipe now, at most `most` of them."""
    try:
        return os.read(pipe, most)
    except BlockingIOError:
        return b""


def _no_sandbox(why: str) -> Exception:
    way_out = "run these evaluations on Linux 5.13 or later (x86_64 or aarch64) with Landlock enabled, or without code"
    return refuse("evals.run_code", True, f"this machine cannot confine a program ({why})", way_out)
