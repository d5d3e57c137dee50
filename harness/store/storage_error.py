"""Storage faults: a full disk, a used-up quota, a read-only or lost file system, a device that fails.

Python, Arrow, safetensors and tokenizers each report them in their own way; here they become one error with one
sentence: which folder, what the system said, what to do. What knows how much room it needs adds a note to the error.
Nothing that is finished is lost by such a fault, so a stage that ended by one is made again by the same command.

    with storage_faults(store.root):
        write_json(store.grid_folder(grid) / "plan.json", plan)     # raises StorageError on a full disk
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.config.checks import SettingsError

FULL = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there or have the quota raised",
    errno.EROFS: "mount the file system writable",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EXDEV: "keep the folders of a store on one file system",
}
"""By error number, what to do; no stage can be published before that."""
FAILING = {
    errno.EIO: "check the disk or the network share",
}
"""The same for faults that may concern one file alone."""
OF_A_PATH = {
    errno.ENOENT: "put the folder back",
    errno.ESTALE: "mount the file system again",
    errno.ENOTCONN: "mount the file system again",
    errno.ENODEV: "mount the file system again",
    errno.ENXIO: "mount the file system again",
    errno.EACCES: "give back the permission",
    errno.EPERM: "give back the permission",
}
"""The same for numbers that mean other things too, as of a socket: a fault only at a path in the folder."""
LITTLE = 2**20  # bytes; a file system with less room is taken for the one that is full
QUOTED = re.compile(r"(?:os error |[Ee]rrno |code: )(\d+)")


class StorageError(SettingsError):
    """A store, or another folder, that cannot be read or written now; the same command goes on when it can."""

    def __init__(self, sentence: str, number: int | None = None) -> None:
        super().__init__(sentence)
        self.number = number
        """The system's error number; null where the sentence came from another process."""


@contextmanager
def storage_faults(folder: Path, artifact: Path | None = None) -> Iterator[None]:
    """Turn a storage fault of the block into a StorageError; any other error passes.

    `folder`: what the block writes to, the root of a store or the folder of a report. `artifact`: the folder of an
    artifact that is being written; the sentence states how much of it there was.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        fault = storage_error(error, folder, artifact)
        if fault is None:
            raise
        raise fault from error


def storage_error(error: BaseException, folder: Path, artifact: Path | None = None) -> StorageError | None:
    """The StorageError that an error, or the cause of it, amounts to; None where it is another one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageError):
            return cause
        number, path = _number(cause), _path(cause)
        way_out = {**FULL, **FAILING}.get(number or 0) or (_way_out_at(number, path, folder) if path else None)
        if number and way_out:
            needed = list(getattr(cause, "__notes__", []))
            return StorageError(_sentence(number, path, folder, artifact, way_out, needed), number)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _number(error: BaseException) -> int | None:
    """The system's error number; libraries in Rust and C++ have it in the text of an exception of their own."""
    if isinstance(error, OSError):
        return error.errno
    # only these: a number in the text of any other error may mean anything
    if type(error).__name__ in ("SafetensorError", "ArrowException") or type(error) is Exception:
        found = QUOTED.search(str(error))
        return int(found[1]) if found else None
    return None


def _path(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes) and name else None


def _way_out_at(number: int | None, path: Path, folder: Path) -> str | None:
    if number not in OF_A_PATH or not path.is_relative_to(folder):
        return None
    # a single file may be absent for any reason; a store that is gone is a fault of its file system
    if number == errno.ENOENT and folder.exists():
        return None
    return OF_A_PATH[number]


def _sentence(
    number: int, path: Path | None, folder: Path, artifact: Path | None, way_out: str, needed: list[str]
) -> str:
    inside = path is None or path.is_relative_to(folder)
    where = folder if inside else (path or folder).parent
    if path is None and number == errno.ENOSPC and _free(folder) >= LITTLE:
        # a write names no file, and what is full may be the system's folder for temporary files
        temporary = Path(tempfile.gettempdir())
        where = temporary if _free(temporary) < LITTLE else folder
    said = os.strerror(number)
    if path is not None:
        said += f" at {path.relative_to(folder) if inside else path.name}"
    facts = []
    if number in (errno.ENOSPC, errno.EDQUOT):
        facts += [f"{_free(where) / 2**20:.1f} MB are free", *needed]
        if artifact is not None and (written := _size(artifact)):
            facts.append(f"{written / 2**20:.1f} MB of this artifact were written")
    known = f" ({', '.join(facts)})" if facts else ""
    is_store = where == folder and ((folder / "objects").is_dir() or not folder.exists())
    name = f"store={str(where)!r}" if is_store else repr(str(where))
    return f"{name} failed: {said}{known}; {way_out}; what is finished is kept, and the same command goes on."


def _free(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    size = 0
    with suppress(OSError):
        for path in folder.rglob("*"):
            with suppress(OSError):
                size += path.stat().st_size if path.is_file() else 0
    return size
