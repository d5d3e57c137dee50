"""Runs a Python program that a model generated, and its tests in another process; scores HumanEval and MBPP.

Two processes for one program, guarded from the inside (`_sandbox_child.py`) and watched from here. The one runs the
program, the other the tests: a test calls the program's functions through pipes and compares what they return where
the program has no code (`_sandbox_calls.py`), so that a program cannot pass by what it does to its own process.

    network     no socket of any kind, not even to this machine            seccomp
    processes   none can be started, so none outlives it; no signals       seccomp
    files       none can be made, written, moved or removed, by root too   seccomp and Landlock
                none is readable but Python's own and system libraries     Landlock
    memory      `memory_mb` of address space, each                         RLIMIT_AS
    time        `seconds` of processor time, each; three times that by     RLIMIT_CPU; killed from here
                the clock
    secrets     an environment of its own, no inherited files, empty stdin, discarded output

Needs Linux 5.13 or later on x86_64 or aarch64, with Landlock enabled, and no privileges. Elsewhere no code is run:
`check_sandbox` refuses before any answer is generated.

    add = Program("def add(a, b): return a + b", tests="assert add(1, 2) == 3", names=("add",))
    run(add, seconds=3, memory_mb=1024)                                   ProgramResult(passed=True, reason="")
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from harness.config.checks import check_at_least, refuse
from harness.evals.grading import _sandbox_calls, _sandbox_child
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
class Program:
    """A program and its tests. A program without tests passes where it reaches its last line, by its own word."""

    source: str
    """What the model wrote, and what belongs to it; names that the tests use are looked up when it has run."""
    tests: str = ""
    """Statements that raise where the program is wrong; they run in another process."""
    names: tuple[str, ...] = ()
    """The program's names that the tests use."""
    modules: tuple[str, ...] = ()
    """Modules of the standard library that the tests use and the program imports; the tests have their own."""
    known: str = ""
    """Code that runs before the tests, where they do; the program's names take the place of its names."""


@dataclass(frozen=True)
class ProgramResult:
    """The result of a program; `reason` is empty when it passed, else what it raised or how it ended."""

    passed: bool
    reason: str


@cache
def check_sandbox() -> None:
    """Try the guards on a harmless program; raises SettingsError, with the reason, where one does not hold."""
    # once in the process of the program, once in that of the tests
    found = run(Program(PROBE, tests=PROBE), seconds=5, memory_mb=1024)
    if not found.passed:
        raise _no_sandbox(found.reason)


def run(program: Program | str, seconds: int, memory_mb: int) -> ProgramResult:
    """Run a program (a text: one without tests) to its last line, and then its tests to theirs; it passed where
    nothing was raised.

    `seconds` is processor time (whole seconds, at least 1), `memory_mb` address space in MiB (at least 64). Raises
    SettingsError where a guard cannot be set up; the program has then not been started.
    """
    check_at_least("seconds", seconds, 1)
    check_at_least("memory_mb", memory_mb, 64)
    if not hasattr(os, "pidfd_open"):
        raise _no_sandbox(f"it runs {sys.platform}")
    answers, answer_end = os.pipe()
    descriptors = [answers, answer_end]
    try:
        # a program that is killed writes nothing, and a read must not wait for it
        os.set_blocking(answers, False)
        child = _start(program, (os.getpid(), seconds, memory_mb, answer_end))
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
        answer = _read(answers, 1 + _sandbox_child.REASON_BYTES)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    # the clock first: processes killed by this one look like those that died by a signal
    if not in_time or ended == -signal.SIGXCPU or answer == _sandbox_child.OUT_OF_TIME:
        return ProgramResult(False, f"time limit of {seconds} s")
    if answer == _sandbox_child.PASSED:
        return ProgramResult(True, "")
    if answer:
        reason = answer.removeprefix(_sandbox_child.FAILED).decode(errors="replace")
        return ProgramResult(False, "".join(c if c.isprintable() else " " for c in reason))
    return ProgramResult(False, f"killed by signal {-ended}" if ended < 0 else "its tests ended before their last line")


def run_many(
    programs: Sequence[Program | str], seconds: int, memory_mb: int, workers: int | None = None
) -> list[ProgramResult]:
    """The result of each program, in order; `workers` run at once (default: one per core). Raises as `run` does."""
    # threads suffice: each waits for a process of its own
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        return list(pool.map(lambda program: run(program, seconds, memory_mb), programs))


def _start(program: Program | str, arguments: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """The guarded interpreter, in a session of its own, with the program and its tests on its stdin."""
    *_, answer = arguments
    whole = program if isinstance(program, Program) else Program(program)
    inside = Path(_sandbox_child.__file__)
    folders = [str(inside.parent), str(Path(_sandbox_calls.__file__).parent)]
    # imported, so that the interpreter takes the compiled file; the folders are on its path for these imports alone
    start = f"import sys; sys.path[:0] = {folders!r}; import _sandbox_calls, {inside.stem}; del sys.path[:2]; "
    start += f"{inside.stem}.main(_sandbox_calls)"
    # a file in memory: a pipe would block on a program longer than its buffer, and a file on disk would need a name
    source = os.memfd_create("program")
    try:
        with os.fdopen(os.dup(source), "wb") as file:
            file.write(json.dumps(asdict(whole)).encode())
        os.lseek(source, 0, os.SEEK_SET)
        return subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-c", start, *map(str, arguments)],
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # nothing else of this process's environment, which may hold keys; the interpreter may need its libraries'
            # path
            env=ENVIRONMENT | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            pass_fds=(answer,),
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
