"""Hostile programs are contained and leave nothing behind; a program that fails cannot seem to pass."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness.config.checks import SettingsError
from harness.evals.grading import _sandbox_calls, _sandbox_child, sandbox
from harness.evals.grading.sandbox import Program, check_sandbox, run, run_many

MEMORY_MB = 512

# What is tried, and what the reason must say: every attempt ends in an exception of its own or is killed.
HOSTILE = {
    "fork bomb": ("import os\nwhile True: os.fork()", "not permitted"),
    "fork bomb that goes on": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "time limit",
    ),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=input).start()", "can't start new thread"),
    "another program": ("import subprocess; subprocess.run(['/bin/sh', '-c', 'true'])", "not permitted"),
    "shell": ("import os; assert os.system('true') == 0", "AssertionError"),
    "exec": ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
    "endless loop": ("while True: pass", "time limit"),
    "loop that ignores its signal": (
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: 0)\nwhile 1: pass",
        "limit",
    ),
    "sleep": ("import time; time.sleep(1000)", "time limit"),
    "allocation": ("x = bytearray(10**11)", "MemoryError"),
    "growth": ("x = []\nwhile True: x.append(bytearray(2**26))", "MemoryError"),
    "recursion": ("import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()", "signal 11|limit|MemoryError"),
    "write outside": ("open(MARKER, 'w').write('here')", "PermissionError"),
    "append": ("open(VICTIM, 'a').write('more')", "PermissionError"),
    "truncate on reading": ("import os; os.open(VICTIM, os.O_RDONLY | os.O_TRUNC)", "PermissionError"),
    "truncate": ("import os; os.truncate(VICTIM, 0)", "PermissionError"),
    "delete": ("import os; os.remove(VICTIM)", "PermissionError"),
    "rename": ("import os; os.rename(VICTIM, MARKER)", "PermissionError"),
    "link": ("import os; os.symlink(VICTIM, MARKER)", "PermissionError"),
    "folder": ("import os; os.mkdir(MARKER)", "PermissionError"),
    "mode": ("import os; os.chmod(VICTIM, 0o777)", "PermissionError"),
    "owner": ("import os; os.chown(VICTIM, 1, 1)", "PermissionError"),
    "times": ("import os; os.utime(VICTIM, (0, 0))", "PermissionError"),
    "own interpreter": ("import os; os.open(os.__file__, os.O_RDWR)", "PermissionError"),
    "memory file": ("import os; os.memfd_create('x')", "PermissionError"),
    "read another's file": ("open(VICTIM).read()", "PermissionError"),
    "read the accounts": ("open('/etc/passwd').read()", "PermissionError"),
    "read the parent's environment": ("import os; open(f'/proc/{os.getppid()}/environ').read()", "PermissionError"),
    "socket": ("import socket; socket.socket()", "not permitted"),
    "this machine": ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "not permitted"),
    "pair of sockets": ("import socket; socket.socketpair()", "not permitted"),
    "signal to the parent": ("import os; os.kill(os.getppid(), 9)", "not permitted"),
    "signal to all": ("import os; os.kill(-1, 9)", "not permitted"),
    "signal through a file": ("import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", "not permitted"),
    "more memory": ("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", "not permitted|not allowed"),
    "io_uring": (
        "import ctypes\nif ctypes.CDLL(None).syscall(425, 4, bytes(120)) < 0: raise OSError('kept out')",
        "kept out",
    ),
    "x32 numbering": (
        "import ctypes\nif ctypes.CDLL(None).syscall(0x40000029, 2, 1, 0) < 0: raise OSError('kept out')",
        "kept",
    ),
    "daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(5)\n    open(MARKER, 'w')",
        "not permitted",
    ),
    "leaving early": ("import os; os._exit(0)\nassert False", "ended before its last line"),
    "leaving politely": ("import sys; sys.exit(0)\nassert False", "SystemExit: 0"),
    "leaving from a test": ("def f(): raise SystemExit\nassert f() == 1", "SystemExit"),
    "greeting again": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'ready\\n')\n    except OSError: pass\nassert False",
        "gave the tests cannot be read",
    ),
    "closed files": ("import os; os.closerange(0, 64)", "ended before its last line"),
    "printed success": ("print('ready'); print('passed')\nassert False", "AssertionError"),
    "own exception": ("class E(BaseException):\n    def __str__(self): raise ValueError\nraise E", "E"),
    "not Python": ("```python", "SyntaxError"),
    "zero byte": ("a = 1\0", "null bytes"),
}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    """Every hostile program run once, a few at a time: name -> (outcome, folder it could have changed)."""
    folders = {name: tmp_path_factory.mktemp("attempt") for name in HOSTILE}
    programs = []
    for name, folder in folders.items():
        (folder / "victim").write_text("as it was")
        folder.chmod(0o777)
        program = HOSTILE[name][0].replace("VICTIM", repr(str(folder / "victim")))
        programs.append(program.replace("MARKER", repr(str(folder / "marker"))))
    started = time.monotonic()
    outcomes = run_many(programs, seconds=1, memory_mb=MEMORY_MB, workers=4)
    assert time.monotonic() - started < 60
    return {name: (outcome, folders[name]) for name, outcome in zip(HOSTILE, outcomes, strict=True)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained_and_does_not_pass(name, attempts):
    outcome, folder = attempts[name]
    assert not outcome.passed
    assert re.search(HOSTILE[name][1], outcome.reason), outcome.reason
    assert [path.name for path in folder.iterdir()] == ["victim"]
    assert (folder / "victim").read_text() == "as it was"
    assert len(outcome.reason) <= _sandbox_child.REASON_BYTES and outcome.reason.isprintable()


def test_nothing_runs_on_and_no_file_stays_open(attempts):
    open_before = len(os.listdir("/proc/self/fd"))
    assert not run("import os; os._exit(3)", 1, MEMORY_MB).passed
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert not [child for child in psutil.Process().children(True) if "_sandbox_child" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert sorted([2, 1]) == [1, 2]",
        "import numpy; assert numpy.dot([1, 2], [3, 4]) == 11",
        "import sys\nfor _ in range(100): sys.stdout.write('x' * 2**20)",
        "class C:\n    def __del__(self): raise ValueError\nC()\nc = C()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "if __name__ == '__main__': raise ValueError('a demonstration, not a test')",
        "import os\nassert not {'SECRET', 'HOME', 'PATH'} & set(os.environ), os.environ",
        "import sys\nassert sys.stdin.read() == '' and sys.argv == ['program']",
        "s = {'c', 'a', 'b', 'd', 'e'}\nassert hash('a') == " + subprocess.run(
            [sys.executable, "-c", "print(hash('a'))"], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True
        ).stdout,
    ],
)  # fmt: skip
def test_a_program_that_reaches_its_end_passes(program, monkeypatch):
    monkeypatch.setenv("SECRET", "of the parent")
    assert run(program, 5, MEMORY_MB) == sandbox.ProgramResult(True, "")


def test_outcomes_come_in_the_order_of_the_programs():
    programs = [f"assert {number} % 3" for number in range(12)]
    assert [outcome.passed for outcome in run_many(programs, 5, MEMORY_MB)] == [bool(n % 3) for n in range(12)]


def test_a_fork_of_the_parent_that_holds_the_pipe_open_does_not_delay_or_change_the_outcome(monkeypatch):
    forked = []

    def start(*arguments):
        forked.append(os.fork())
        if not forked[-1]:
            time.sleep(20)
            os._exit(0)
        return begin(*arguments)

    begin = sandbox._start
    monkeypatch.setattr(sandbox, "_start", start)
    started = time.monotonic()
    try:
        assert run("pass", 5, MEMORY_MB).passed
        assert not run("import os; os._exit(0)", 5, MEMORY_MB).passed
        assert time.monotonic() - started < 5
    finally:
        for process in forked:
            os.kill(process, 9)
            os.waitpid(process, 0)


def test_a_program_ends_with_the_process_that_started_it():
    code = f"from harness.evals.grading import sandbox; sandbox.run('import time; time.sleep(50)', 20, {MEMORY_MB})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 20
    while not children and time.monotonic() < deadline:
        time.sleep(0.05)
        children = psutil.Process(parent.pid).children()
    assert children
    time.sleep(0.3)  # past the start of the interpreter
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Start programs with a copy of the inside in which `old` reads `new`."""
    text = Path(_sandbox_child.__file__).read_text()
    assert text.count(old) == 1
    (tmp_path / "inside.py").write_text(text.replace(old, new))
    shutil.copy(_sandbox_calls.__file__, tmp_path)
    monkeypatch.setattr(_sandbox_child, "__file__", str(tmp_path / "inside.py"))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("LANDLOCK_RESTRICT_SELF = 444, 445, 446", "LANDLOCK_RESTRICT_SELF = 9444, 445, 446", "Landlock: Function not"),
        ('"x86_64": (', '"riscv64": (', "seccomp: no table of system calls"),
        ("PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38", "PR_SET_NO_NEW_PRIVS = 1, 4, 22, 9999", "no new privileges: Invalid"),
        ("def main(", "def main((", "the interpreter does not start"),
    ],
)
def test_code_is_not_run_where_a_guard_cannot_be_set_up(old, new, why, tmp_path, monkeypatch):
    if "x86_64" in old and os.uname().machine != "x86_64":
        old, new = '"aarch64": (', '"riscv64": ('
    broken(tmp_path, monkeypatch, old, new)
    marker = tmp_path / "marker"
    with pytest.raises(SettingsError, match=f"evals.run_code=True cannot be run: .*{why}"):
        run(f"open({str(marker)!r}, 'w')", 1, MEMORY_MB)
    assert not marker.exists()


@pytest.mark.parametrize(
    "guard",
    [
        "    _read_only_the_installation()\n\n\ndef readable",
        "        _only_harmless_calls()\n    except OSError as problem:\n        calls",
        "        _only_harmless_calls()\n    except OSError as problem:\n        os.write",
    ],
)
def test_the_check_notices_each_guard_that_is_missing(guard, tmp_path, monkeypatch):
    broken(tmp_path, monkeypatch, guard, re.sub(r"_[a-z_]+\(\)", "pass", guard, count=1))
    with pytest.raises(SettingsError, match="is possible"):
        check_sandbox.__wrapped__()


WITHOUT_PRIVILEGES = """
import ctypes, os, sys
if len(sys.argv) == 1:
    for capability in range(64):  # out of the bounding set: what is executed next has none, whoever runs it
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, __file__, "again"])
with open("/proc/self/status") as file:
    assert int(next(line for line in file if line.startswith("CapEff")).split()[1], 16) == 0
from harness.evals.grading import sandbox
sandbox.check_sandbox()
print(sandbox.run("import os; os.kill(os.getppid(), 9)", 2, 512))
"""


def test_the_guards_hold_without_any_privilege(tmp_path):
    (tmp_path / "script.py").write_text(WITHOUT_PRIVILEGES)
    answer = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert "ProgramResult(passed=False, reason='PermissionError" in answer.stdout, answer.stderr


# ruff: noqa: E501
# What a program tries so that a wrong function passes `assert f(2) == 4`; it may know the sandbox's own code.
FORGERIES = {
    "leave before the tests": "import os\nos._exit(0)",
    "leave politely": "import sys\nsys.exit(0)",
    "leave when the tests call": "import os\ndef f(x): os._exit(0)",
    "leave at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 5",
    "raise the end of an iteration": "def f(x): raise StopIteration",
    "raise the end of the process": "def f(x): raise SystemExit(0)",
    "equal to all": "class E:\n    __eq__ = lambda *_: True\ndef f(x): return E()",
    "a number equal to all": "class E(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\ndef f(x): return E(5)",
    "a class that is equal to all": (
        "class M(type):\n    __eq__ = lambda *_: True\n    __hash__ = type.__hash__\nclass f(metaclass=M):\n"
        "    def __new__(cls, x): return cls"
    ),
    "true by its own word": "class T:\n    __bool__ = lambda _: True\n    __eq__ = lambda a, b: a\ndef f(x): return T()",
    "another assert": "import builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {})\ndef f(x): return 5",
    "another comparison": "import operator\noperator.eq = lambda a, b: True\ndef f(x): return 5",
    "another check": "def check(candidate): pass\ndef f(x): return 5",
    "another type through its flags": (
        "import ctypes\ndef f(x):\n    class F: pass\n    ctypes.c_long.from_address(id(5) + 8).value = id(type(F()))\n"
        "    return 5"
    ),
    "the integer 5 is 4": "import ctypes\nctypes.c_int.from_address(id(5) + 24).value = 4\ndef f(x): return 5.5",
    "every descriptor": (
        "import os\ndef f(x):\n    for fd in range(3, 64):\n        for text in (b'+', b'ready\\n+'):\n"
        "            try: os.write(fd, text)\n            except OSError: pass\n    os._exit(0)"
    ),
    "what lies in descriptors": (
        "import os, select\ndef f(x):\n    for fd in range(64):\n        try:\n"
        "            if select.select([fd], [], [], 0)[0]: os.write(4, os.read(fd, 64))\n"
        "        except (OSError, ValueError): pass\n    return 5"
    ),
    "the frames of the sandbox": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for name, value in list(frame.f_locals.items()):\n"
        "            if isinstance(value, (str, bytes)) and 'assert f(2)' in str(value): return 4\n"
        "        frame = frame.f_back\n    return 5"
    ),
    "all objects in memory": (
        "import gc\ndef f(x):\n    found = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
        "    return 4 if any('assert f(2' + ') ==' in str(p) for o in found if len(o) < 50 for p in o if type(p) is str) else 5"
    ),
    "a module of the sandbox": (
        "import sys\ncalls = sys.modules['_sandbox_calls']\ncalls.encoded = lambda value, number_of: ['value', True]\n"
        "def f(x): return 5"
    ),
    "its own reply": (
        "import sys\ncalls = sys.modules['_sandbox_calls']\nsend = calls.send\n"
        "calls.send = lambda pipe, message: send(pipe, ['passed', True, ''])\ndef f(x): return 5"
    ),
    "a reply that is no message": (
        "import os, sys\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, b'\\xff' * 64)\n"
        "        except OSError: pass\n    return 4"
    ),
    "a reply of 8 EB": (
        "import os\ndef f(x):\n    for fd in range(3, 9):\n        try: os.write(fd, b'\\x7f' + bytes(7))\n"
        "        except OSError: pass\n    return 4"
    ),
    "an object in place of a value": "class L(list):\n    __len__ = lambda _: 4\ndef f(x): return L",
    "a trace function": (
        "import sys, threading\ndef tracer(frame, event, argument):\n    frame.f_trace_lines = False\n    return tracer\n"
        "sys.settrace(tracer)\nthreading.settrace(tracer)\ndef f(x): return 5"
    ),
    "the tests' memory": ("import os\ndef f(x):\n    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)\n    return 5"),
    "tracing the tests": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\ndef f(x):\n    assert libc.ptrace(16, os.getppid(), 0, 0) == 0\n"
        "    return 5"
    ),
    "a signal to the tests": "import os\ndef f(x): os.kill(os.getppid(), 9)",
    "no more memory": "def f(x): return 'x' * (400 << 20)",
    "an answer without an end": "def f(x):\n    while True: yield 4",
    "an answer that holds itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a deep answer": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "a fork that answers": "import os\ndef f(x): return 4 if os.fork() else 5",
    "threads that answer": ("import threading\ndef f(x):\n    threading.Thread(target=print).start()\n    return 4"),
    "a name that is not there": "def g(x): return 4",
    "no return of the signal": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f(x):\n    while True: pass",
    "to sleep": "import time\ndef f(x): time.sleep(100)",
}


def test_a_wrong_function_cannot_pass_its_tests():
    tests = "assert f(2) == 4\nassert f(3) == 9\n"
    programs = [Program(source, tests, ("f",)) for source in FORGERIES.values()]
    outcomes = dict(zip(FORGERIES, run_many(programs, 1, MEMORY_MB, workers=4), strict=True))
    assert [name for name, outcome in outcomes.items() if outcome.passed] == []
    assert [name for name, outcome in outcomes.items() if not outcome.reason] == []
    assert run(Program("def f(x): return x * x", tests, ("f",)), 5, MEMORY_MB).passed


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("def f(x): return x", "for v in (None, True, 3, -(10**5000), 1.5, float('inf'), 'a\\ud800', b'\\0', 2j): assert f(v) == v"),
        ("def f(x): return x", "for v in ([1, (2, {3})], {1: {'a'}}, frozenset({1}), range(3), bytearray(b'a')):\n"
         "    assert f(v) == v and type(f(v)) is type(v)"),
        ("from collections import *\ndef f(): return [Counter('aab'), deque([1]), OrderedDict(a=1), defaultdict(int, a=1)]",
         "from collections import *\nassert f() == [Counter('aab'), deque([1]), OrderedDict(a=1), {'a': 1}]"),
        ("from fractions import *\nfrom decimal import *\nfrom datetime import *\n"
         "def f(): return Fraction(1, 2), Decimal('0.5'), date(2020, 1, 2), timedelta(1, 2)",
         "assert f()[:2] == (0.5, 0.5) and str(f()[2]) == '2020-01-02' and f()[3].seconds == 2"),
        ("import numpy\ndef f(): return numpy.arange(3), numpy.int64(3), numpy.float32(0.5)",
         "assert f()[0].tolist() == [0, 1, 2] and f()[1:] == (3, 0.5)"),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and 2 in f(3) and next(f(1)) == 0"),
        ("def f(d): return d.keys(), d.values(), map(str, d)", "k, v, m = f({1: 2})\nassert k == {1} and list(v) == [2]"
         " and list(m) == ['1']"),
        ("from collections import namedtuple\nf = namedtuple('P', 'x y')", "assert f(1, 2) == (1, 2)"),
        ("class f:\n    def __init__(self, x): self.x = x\n    def twice(self, by=2): return self.x * by",
         "o = f(3)\no.x = o.x + 1\nassert o.twice() == 8 and o.twice(by=3) == 12 and o == o and o != f(4)"),
        ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3"),
        ("def f(x): return type(x)", "assert f(1) is int"),
        ("def f(x): raise KeyError(x)", "try:\n    f('a')\nexcept KeyError as problem:\n    assert str(problem) == \"'a'\""),
        ("import re\ndef f(x): return re.match('a+', x)", "assert f('aab') and f('aab').group() == 'aa' and not f('b')"),
        ("def f(x): return [int(n) for n in str(x)]", "assert f(12) == [1, 2]"),
    ],
)  # fmt: skip
def test_values_reach_the_tests_as_they_are(source, tests):
    outcome = run(Program(source, tests, ("f",)), 5, 1024)
    assert outcome.passed, outcome.reason


def test_the_tests_have_their_own_modules_and_code():
    fake = "class sys:\n    getsizeof = lambda _: 4\ndef f(x): return 4\ndef helper(): return 4"
    tests = "assert f(1) == sys.getsizeof(()) or helper() == 4"
    known = "def helper(): return 5\ndef f(x): ..."
    assert not run(Program(fake, tests, ("f",), ("sys",), known), 5, MEMORY_MB).passed
    without = Program("def f(x): return 4", "assert sys.getsizeof(()) > 4", ("f",), ("sys",))
    assert run(without, 5, MEMORY_MB).reason == "NameError: name 'sys' is not defined"
    assert run(Program("import sys\n" + without.source, without.tests, ("f",), ("sys",)), 5, MEMORY_MB).passed


def test_the_filter_of_either_architecture_is_well_formed_and_lets_no_dangerous_call_through():
    for machine, dangerous in {
        "x86_64": (41, 56, 57, 59, 62, 85, 87, 101, 321, 425, 435),
        "aarch64": (198, 220, 221, 129, 35, 117),
    }.items():
        program = _sandbox_child.filter_program(machine, 1)
        assert len(program) < 4096
        audit = _sandbox_child.ARCHITECTURES[machine][0]
        for number in dangerous:
            assert decide(program, number, audit) == _sandbox_child.REFUSE
        openat = _sandbox_child.OPENAT[_sandbox_child.ARCHITECTURES[machine][1]]
        assert decide(program, openat, audit, (0, 0, os.O_RDONLY | os.O_CLOEXEC)) == _sandbox_child.ALLOW
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
            assert decide(program, openat, audit, (0, 0, flags)) == _sandbox_child.REFUSE
        prlimit = _sandbox_child.PRLIMIT[_sandbox_child.ARCHITECTURES[machine][1]]
        assert decide(program, prlimit, audit, (0, 7, 0)) == _sandbox_child.ALLOW
        for pointer in (1, 1 << 32):
            assert decide(program, prlimit, audit, (0, 7, pointer)) == _sandbox_child.REFUSE
        assert decide(program, 0, 0xDEAD) == _sandbox_child.KILL


def decide(program, number, audit, arguments=()):
    """What a classic BPF machine makes of one system call."""
    values = [*arguments, *(0,) * (6 - len(arguments))]
    data = {0: number, 4: audit} | {16 + 8 * i: v & 0xFFFFFFFF for i, v in enumerate(values)}
    data |= {20 + 8 * i: v >> 32 for i, v in enumerate(values)}
    held = at = 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == _sandbox_child.RETURN:
            return operand
        if code == _sandbox_child.LOAD:
            held = data[operand]
            continue
        tests = {_sandbox_child.JUMP_EQUAL: held == operand, _sandbox_child.JUMP_AT_LEAST: held >= operand}
        at += yes if tests.get(code, bool(held & operand)) else no


def test_runs_from_many_threads_do_not_disturb_each_other():
    found = []
    threads = [threading.Thread(target=lambda: found.append(run("pass", 5, MEMORY_MB).passed)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8
