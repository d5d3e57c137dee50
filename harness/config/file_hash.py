"""The sha256 of a file's content, which stands for the file wherever a setting names one.

A plan hashes the same data and weights again and again, so a hash is remembered by path, size and mtime: in this
process, and in the user's cache folder (`$XDG_CACHE_HOME/harness/file_sha256`, else `~/.cache/harness/file_sha256`).

    file_sha256(Path("rows.jsonl"))                       # remembered
    file_sha256(out / "items.parquet", remember=False)    # a file just written, read once
    content_sha256(teacher / "model.safetensors")         # read once by this process, never from the user's cache
"""

import functools
import hashlib
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

RACY_SECONDS = 2.0  # a file touched this recently may change again without a new mtime, so it is not remembered


def file_sha256(path: Path, remember: bool = True) -> str:
    """sha256 (hex) of a file's content.

    `remember`: look the hash up by path, size and mtime, and keep it for the next call. A file changed within the
    last two seconds is hashed and not remembered. A cache folder that cannot be read or written changes nothing.
    Raises OSError where the file cannot be read.
    """
    path = Path(path).resolve()
    stat = path.stat()
    if not remember or time.time() - stat.st_mtime <= RACY_SECONDS:
        return _hash(path)
    return _remembered_hash(path, f"{stat.st_size} {stat.st_mtime_ns}")


def content_sha256(path: Path) -> str:
    """sha256 (hex) of a file's content as this process read it: once for each path, inode, size and mtime.

    The user's cache has no part in it, since a disk that returns other bytes changes neither size nor mtime. Raises
    OSError where the file cannot be read.
    """
    path = Path(path).absolute()
    stamp = _stamp(path)
    if _contents.get(str(path), ("", ""))[0] != stamp:
        _contents[str(path)] = (stamp, _hash(path))
    return _contents[str(path)][1]


def note_content(path: Path, sha256: str) -> None:
    """Keep the hash of a file that this process has just read, for `content_sha256`. Raises OSError without a file."""
    _contents[str(Path(path).absolute())] = (_stamp(path), sha256)


_contents: dict[str, tuple[str, str]] = {}


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


@functools.cache
def _remembered_hash(path: Path, stamp: str) -> str:
    """The hash of a file of this size and mtime, from this process, the user's cache folder, or the file."""
    name = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    entry = _cache_folder() / "file_sha256" / name
    try:
        # one entry a path: a file that changed has another stamp and its entry is replaced
        size_and_mtime, _, known = entry.read_text().rpartition(" ")
        if size_and_mtime == stamp and len(known) == 64:
            return known
    except (OSError, UnicodeDecodeError):
        pass  # no entry yet, or no access to the cache: hashing gives the same answer
    digest = _hash(path)
    _remember(entry, f"{stamp} {digest}")
    return digest


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def _remember(entry: Path, text: str) -> None:
    # renamed into place, so that a process that reads meanwhile finds the old entry or the whole new one
    unfinished = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text)
        os.replace(unfinished, entry)
