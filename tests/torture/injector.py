"""The injector: counts what this process and its forks do to a store, and kills or fails at the n-th operation.

Operations are seen by an audit hook, so shutil, pathlib and libraries in Python are covered, and an exception of the
hook ends the operation. Two kinds that have no audit event are patched: fsync, and the moment after a file was opened
for writing, when it is there and empty. A hook cannot be removed, so `arm` belongs in a process of its own.

    arm(Fault(str(store), at=17, act="kill", counter=str(path)))
"""

import builtins
import errno
import fcntl
import io
import mmap
import os
import resource
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TWO_PATHS = ("os.rename", "os.link")
ONE_PATH = {"os.mkdir": 2, "os.remove": 1, "os.rmdir": 1, "os.utime": 3, "os.truncate": None, "os.symlink": None}
"""Audit events on one path, and the place of their `dir_fd` among the arguments."""
NEEDS_ROOM = ("open", "write", "mkdir", "link", "symlink")
"""What fails on a full disk; removing and renaming go on."""


@dataclass(frozen=True)
class Fault:
    """What happens at which operation of a store."""

    root: str
    at: int
    """The operation, counted from 1; 0 for none. For EFBIG the bytes that a file may have."""
    act: str
    """`kill`, `none`, or the name of an error: one of `ENOSPC`, `EDQUOT` and `EROFS` lasts, `EIO` happens once. `EFBIG`
    is a limit of the system, which libraries in Rust and C++ meet as well."""
    counter: str
    """A file in which all processes of a run count together; beside it `<counter>.log` names the operations."""


class _Injector:
    def __init__(self, fault: Fault) -> None:
        self.fault, self.inside = fault, False
        self.root = os.path.abspath(fault.root) + os.sep
        self.open, self.fsync = io.open, os.fsync
        descriptor = os.open(fault.counter, os.O_RDWR | os.O_CREAT)
        os.truncate(descriptor, 8)
        self.shared = mmap.mmap(descriptor, 8)
        self.descriptor = descriptor
        self.log = os.open(f"{fault.counter}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.inside:
            return
        if event == "open" and not isinstance(arguments[0], int) and arguments[0] is not None:
            if arguments[2] & WRITING:
                self.note("open", arguments[0])
            elif self.fault.act == "EIO":
                self.note("read", arguments[0])
        elif event in TWO_PATHS:
            self.note(event[3:], arguments[1])
        elif event in ONE_PATH and not isinstance(arguments[0], int):
            place = ONE_PATH[event]
            name = arguments[1] if event == "os.symlink" else arguments[0]
            self.note(event[3:], name, arguments[place] if place is not None else -1)

    def opened(self, file, mode="r", *rest, **named):
        """`open`, and an operation more where a file was opened for writing: now it is there, and empty."""
        stream = self.open(file, mode, *rest, **named)
        if not isinstance(file, int) and set(mode) & set("wxa+"):
            try:
                self.note("write", file)
            except BaseException:
                stream.close()
                raise
        return stream

    def synced(self, descriptor: int) -> None:
        self.note("fsync", f"/proc/self/fd/{descriptor}")
        self.fsync(descriptor)

    def note(self, kind: str, name, folder: int = -1) -> None:
        """Count one operation on a path in the store, and do what the fault says."""
        if self.inside:
            return
        path = os.fsdecode(os.fspath(name))
        self.inside = True
        try:
            if path.startswith("/proc/self/fd/"):
                path = os.readlink(path)
            if folder >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            path = os.path.abspath(path)
            if not path.startswith(self.root):
                return
            number = self._count()
            os.write(self.log, f"{number} {os.getpid()} {kind} {path.removeprefix(self.root)}\n".encode())
        finally:
            self.inside = False
        self._strike(number, kind, path)

    def _count(self) -> int:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            number = struct.unpack("q", self.shared[:8])[0] + 1
            self.shared[:8] = struct.pack("q", number)
            return number
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def _strike(self, number: int, kind: str, path: str) -> None:
        act = self.fault.act
        if not self.fault.at or act in ("none", "EFBIG"):
            return
        if act == "kill":
            if number == self.fault.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        code = getattr(errno, act)
        lasts = act != "EIO"
        if number == self.fault.at or (lasts and number > self.fault.at):
            if act in ("ENOSPC", "EDQUOT") and kind not in NEEDS_ROOM:
                return
            # a failing write or fsync names no file
            raise OSError(code, os.strerror(code), *([] if kind in ("write", "fsync") else [path]))


_armed: list[_Injector] = []


def arm(fault: Fault) -> set[int]:
    """Inject `fault` into this process and all that it forks; returns descriptors that must stay open."""
    injector = _Injector(fault)
    _armed.append(injector)
    sys.addaudithook(injector.hook)
    io.open = builtins.open = injector.opened
    os.fsync = injector.synced
    if fault.act == "EFBIG" and fault.at:
        injector.inside = True  # the list of operations would meet the limit too
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, resource.RLIM_INFINITY))
    return {injector.descriptor, injector.log}


def disarm() -> None:
    """Neither count nor fail from here on, as while a test reads what came of a run."""
    for injector in _armed:
        injector.inside = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def operations(counter: Path) -> list[str]:
    """What was counted, in order: `kind path`."""
    return [line.split(" ", 2)[2] for line in Path(f"{counter}.log").read_text().splitlines()]
