"""Liveness: whether the process that wrote a note or a file still runs, and for how long a claim has been silent.

A process is known by its host, the boot of that host, its PID name space, its id and its start in clock ticks since the
boot: none of them moves when the clock is set, and a container that has the host's name has a name space of its own. A
process that cannot be looked up from here is judged by its heartbeat.

    note = this_process()
    runs(note)                      # True, False, or None where it cannot be looked up from here
    owner_runs(f"x.{owner()}")      # the same, of the process whose mark a file's name ends with
"""

import functools
import hashlib
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

LOST_SECONDS = 50.0
"""A claim that is not touched for this long, more than three heartbeats, is of a process that is stopped or lost."""
STALE_SECONDS = 600.0
"""The same for a first look at the claim of a process that cannot be looked up: the clocks of two machines differ."""
_OWNER = re.compile(r"\.(\d+)-(\d+)-([0-9a-f]{12})$")
_seen: dict[str, tuple[int, float]] = {}


def this_process() -> dict[str, Any]:
    """What tells this process from every other one, for files that others read."""
    process = psutil.Process()
    # `process_started` is read by earlier versions of this program alone: it moves when the clock is set
    note = {"host": socket.gethostname(), "pid": process.pid, "process_started": process.create_time()}
    boot, space = _kernel()
    found = _state_and_ticks(process.pid)
    return note if found is None else {**note, "boot": boot, "pid_space": space, "ticks": found[1]}


def runs(note: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote a note (see `this_process`) still runs; None where it cannot be looked up here.

    Raises KeyError or TypeError for a note that lacks what `this_process` writes.
    """
    if note["host"] != socket.gethostname():
        return None
    if "ticks" in note:
        return None if (note["boot"], note["pid_space"]) != _kernel() else _same(int(note["pid"]), note["ticks"])
    try:
        process = psutil.Process(note["pid"])
        same = abs(process.create_time() - note["process_started"]) < 1.0  # else the id was given to another process
        # a killed worker is a zombie until its parent waits for it, and makes nothing any more
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped by a signal (SIGSTOP) or a debugger."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def seen_silent(path: Path, mtime_ns: int) -> float:
    """Seconds for which this process has seen a file untouched, by the monotonic clock; 0 at the first look.

    It needs no clock of another machine, and does not move when this machine's clock is set.
    """
    now = time.monotonic()
    touched, since = _seen.get(str(path), (0, 0.0))
    if touched != mtime_ns:
        _seen[str(path)] = (mtime_ns, now)
        return 0.0
    return now - since


def owner() -> str:
    """A mark of this process for the end of a file's name: whose the file is can be told when the process is gone."""
    return _owner(os.getpid())


def owner_runs(name: str) -> bool | None:
    """Whether the process that marked a name (see `owner`) still runs; None without a mark, or from elsewhere."""
    found = _OWNER.search(name)
    if found is None or found[3] != _place():
        return None
    return _same(int(found[1]), int(found[2]))


@functools.cache
def _owner(pid: int) -> str:
    found = _state_and_ticks(pid)
    return f"{pid}-{0 if found is None else found[1]}-{_place()}"


@functools.cache
def _kernel() -> tuple[str, str]:
    """The id of this boot and of this PID name space; empty where the system states none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _place() -> str:
    return hashlib.sha256("\n".join((socket.gethostname(), *_kernel())).encode()).hexdigest()[:12]


def _same(pid: int, ticks: int) -> bool | None:
    """Whether the process `pid` of this boot and name space started at `ticks`; None where it is hidden from here."""
    found = _state_and_ticks(pid)
    if found is not None:
        return found[1] == ticks and found[0] not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, whose processes /proc does not show
        return None
    return None  # a system without /proc


def _state_and_ticks(pid: int) -> tuple[str, int] | None:
    """A process's state as a letter, and its start in clock ticks since the boot; None where /proc does not show it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the second field is the command in brackets, which may hold spaces and brackets of its own
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
