"""The processes inside the sandbox: `sandbox.py` starts an interpreter with this file, once for one program.

Standard library only. It gives up every right that a program might misuse and divides in two, each behind a filter of
its own: one process compiles and runs the program, the other its tests, which call the program through
`_sandbox_calls.py`. Each guard is one of the kernel's, holds for root too, and cannot be taken back:

    rlimits     address space, processor time, no file of any size, no core dump
    Landlock    files are readable beneath the Python installation and the system's libraries, none writable
    seccomp     only system calls that compute, read and sleep; no socket, process, signal, write-open, ioctl

Where a guard cannot be set up the program is not run. Python isolates nothing inside a process, so a program may do to
its own what it likes: change built-in functions, read every frame, write to every descriptor. The verdict is made
where it has no code, from the values that its functions return.
"""

import ctypes
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import time
import types
from typing import Any

READY = b"ready\n"
PASSED, FAILED, OUT_OF_TIME = b"+", b"-", b"t"
"""The first byte of the verdict; after `FAILED` comes the reason."""
REASON_BYTES = 400

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
EVERY_FILE_RIGHT = (1 << 13) - 1  # of Landlock's first version, which every later one still knows
READ_FILE, READ_DIRECTORY = 1 << 2, 1 << 3

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number, column of the table below
SYSTEM_CALLS = """
read 0 63, write 1 64, readv 19 65, close 3 57, close_range 436 436, lseek 8 62, pread64 17 67, stat 4 -, lstat 6 -,
fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, dup 32 23, dup2 33 -, dup3 292 24,
fadvise64 221 223, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, mincore 27 232,
brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132,
restart_syscall 219 128, exit 60 93, exit_group 231 94, futex 202 98, sched_yield 24 124, sched_getaffinity 204 123,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169,
time 201 -, times 100 153, getrusage 98 165, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, getpid 39 172,
gettid 186 178, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, uname 63 160,
sysinfo 99 179, getrandom 318 278, getrlimit 97 163, wait4 61 260
"""
# Those whose arguments decide, by the same columns.
OPEN, OPENAT, PRLIMIT, TGKILL, FCNTL, IOCTL = (2, None), (257, 56), (302, 261), (234, 131), (72, 25), (16, 29)
NOT_READ_ONLY = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DUPLICATE_OR_ASK = (0, 1, 2, 3, 1030)  # fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
IS_A_TERMINAL = 0x5401  # ioctl: TCGETS, asked of each file that Python opens

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: the call fails with EPERM

Instruction = tuple[int, int, int, int]  # of classic BPF: code, jump if true, jump if false, operand

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def main(calls: Any) -> None:
    """Guard this process, divide it, and answer with the verdict; `calls` is the module `_sandbox_calls`.

    Arguments of the process: see `sandbox.run`.
    """
    parent, seconds, memory_mb, answer = map(int, sys.argv[1:])
    empty = os.open(os.devnull, os.O_RDONLY)
    try:
        give_up_everything(parent, seconds, memory_mb)
        (requests, request), (replies, reply) = os.pipe(), os.pipe()
        inside = os.fork()
        if not inside:
            be_the_program(calls, requests, reply, empty, (request, replies, answer))
        os.close(requests)
        os.close(reply)
        if unguarded := calls.receive(replies):
            raise OSError(unguarded)
        _only_harmless_calls()
    except OSError as problem:
        os.write(answer, str(problem).encode())
        os._exit(1)
    os.write(answer, READY)
    # read after the division: the other process has never held the tests
    job = json.loads(sys.stdin.buffer.read())
    program = calls.Program(replies, request)
    raised = judge(program, **job)
    if program.broken == calls.ENDED:
        os.write(answer, ending_of(inside, seconds))
    else:
        os.write(answer, verdict_of(program.broken or raised))
    os._exit(0)


def judge(program: Any, source: str, known: str, names: list[str], modules: list[str], tests: str) -> str:
    """What the program or its tests raised, "" where nothing did; `program.broken` is above it.

    `known` is run first, here: code that belongs to the tests. Then the program runs there. Its `names`, and its
    `modules`, are looked up for the tests, which run here.
    """
    module = types.ModuleType("program")
    try:
        exec(compile(known, "known", "exec", dont_inherit=True), module.__dict__)
        if raised := program.started(source):
            return raised
        module.__dict__.update({name: program.named(name) for name in names})
        module.__dict__.update({name: program.imported(name) for name in modules})
        exec(compile(tests, "tests", "exec", dont_inherit=True), module.__dict__)
        return ""
    except BaseException as problem:
        return told(problem)


def be_the_program(calls: Any, requests: int, reply: int, empty: int, others: tuple[int, ...]) -> None:
    """Be the process of the program, with `empty` as its stdin: filter it, say so, and serve the tests."""
    os.dup2(empty, 0)
    for descriptor in (empty, *others):
        os.close(descriptor)
    try:
        _prctl("a signal when the parent dies", PR_SET_PDEATHSIG, 9)
        _only_harmless_calls()
    except OSError as problem:
        calls.send(reply, str(problem))
        os._exit(1)
    sys.argv[:] = ["program"]
    # named so that no `__main__` block runs
    module = sys.modules["program"] = types.ModuleType("program")

    def run(source: str) -> str:
        try:
            exec(compile(source, "program", "exec", dont_inherit=True), module.__dict__)
            return ""
        except BaseException as problem:
            return told(problem)

    leave = os._exit  # a program may replace it
    try:
        calls.send(reply, "")
        calls.serve(module, run, requests, reply)
    except BaseException:  # the other side has ended, or the program has closed the pipes
        leave(1)


def told(problem: BaseException) -> str:
    """What was raised, in words; an exception may fail to have a text."""
    try:
        return f"{type(problem).__name__}: {problem}"
    except BaseException:
        return type(problem).__name__


def ending_of(process: int, seconds: int) -> bytes:
    """The verdict on a program whose process failed the tests; waits for its end."""
    _, status, usage = os.wait4(process, 0)
    ended = os.waitstatus_to_exitcode(status)
    if -ended in (signal.SIGXCPU, signal.SIGKILL) and usage.ru_utime + usage.ru_stime >= seconds:
        return OUT_OF_TIME
    return verdict_of(f"killed by signal {-ended}" if ended < 0 else "ended before its last line")


def verdict_of(problem: str) -> bytes:
    """The verdict for what was raised, or for nothing."""
    return FAILED + problem.encode(errors="replace")[:REASON_BYTES] if problem else PASSED


def give_up_everything(parent: int, seconds: int, memory_mb: int) -> None:
    """Set up every guard that a division leaves in force, or raise OSError that names the one that cannot be."""
    _prctl("a signal when the parent dies", PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        raise OSError("the parent is gone")
    _prctl("no dumps and no tracing", PR_SET_DUMPABLE, 0)
    processor = math.ceil(time.process_time() + seconds)
    limits = [
        (resource.RLIMIT_AS, memory_mb << 20, memory_mb << 20),
        (resource.RLIMIT_CPU, processor, processor + 1),  # a signal that can be ignored, then one that cannot
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ]
    for kind, soft, hard in limits:
        try:
            resource.setrlimit(kind, (soft, hard))
        except ValueError as problem:
            raise OSError(f"the process has a lower limit already ({problem})") from problem
    _prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
    _read_only_the_installation()


def readable() -> list[str]:
    """The folders and files a program may read: Python's own and the system's libraries."""
    system = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    more = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return [path for path in dict.fromkeys([sys.prefix, sys.base_prefix, *system, *more]) if os.path.exists(path)]


def _read_only_the_installation() -> None:
    everything = ctypes.c_uint64(EVERY_FILE_RIGHT)
    rules = _syscall("Landlock", LANDLOCK_CREATE_RULESET, ctypes.byref(everything), 8, 0)
    for path in readable():
        beneath = os.open(path, os.O_PATH)
        rights = READ_FILE | READ_DIRECTORY if os.path.isdir(path) else READ_FILE
        rule = struct.pack("=Qi", rights, beneath)
        _syscall("Landlock", LANDLOCK_ADD_RULE, rules, 1, rule, 0)
        os.close(beneath)
    _syscall("Landlock", LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _only_harmless_calls() -> None:
    """Filter system calls: those of the table pass, some after a check of an argument, all others fail with EPERM."""
    if platform.machine() not in ARCHITECTURES:
        raise OSError(f"seccomp: no table of system calls for {platform.machine()}")
    instructions = filter_program(platform.machine(), os.getpid())
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    _prctl("seccomp", PR_SET_SECCOMP, 2, ctypes.create_string_buffer(program, len(program)))


def filter_program(machine: str, process: int) -> list[Instruction]:
    """The filter, for x86_64 or aarch64; `process`, this one, may signal itself only."""
    audit, column = ARCHITECTURES[machine]
    harmless = [entry.split()[1 + column] for entry in SYSTEM_CALLS.split(",")]
    program = [(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(JUMP_AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # x86's other numbering of the same calls
    program += [step for number in harmless if number != "-" for step in _allow_if(int(number))]
    read_only = [(JUMP_ANY_BIT, 1, 0, NOT_READ_ONLY), (RETURN, 0, 0, ALLOW)]
    looks: list[tuple[tuple[int | None, int | None], list[Instruction]]] = [
        (OPEN, [_low(1), *read_only]),
        (OPENAT, [_low(2), *read_only]),
        (PRLIMIT, [_low(2), (JUMP_EQUAL, 0, 3, 0), _high(2), *_allow_if(0)]),  # ask for a limit, not set one
        (TGKILL, [_low(0), *_allow_if(process)]),
        (FCNTL, [_low(1), *(step for n in DUPLICATE_OR_ASK for step in _allow_if(n))]),
        (IOCTL, [_low(1), *_allow_if(IS_A_TERMINAL)]),
    ]
    for call, look in looks:
        number = call[column]
        if number is not None:
            program += [(JUMP_EQUAL, 0, len(look) + 1, number), *look, (RETURN, 0, 0, REFUSE)]
    return [*program, (RETURN, 0, 0, REFUSE)]


def _allow_if(value: int) -> list[Instruction]:
    return [(JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]


def _low(argument: int) -> Instruction:
    return LOAD, 0, 0, 16 + 8 * argument  # both architectures are little-endian


def _high(argument: int) -> Instruction:
    return LOAD, 0, 0, 20 + 8 * argument


def _prctl(what: str, option: int, value: int, *more: object) -> None:
    rest = [*more, *(ctypes.c_ulong(0),) * (3 - len(more))]
    if libc.prctl(option, ctypes.c_ulong(value), *rest):
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _syscall(what: str, number: int, *arguments: object) -> int:
    found = libc.syscall(ctypes.c_long(number), *arguments)
    if found < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return int(found)
