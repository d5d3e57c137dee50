"""Fsck: everything in a store that is not as it was written, each with what would mend it.

Nothing is changed until a finding's `mend` is called. What is damaged is set aside in `quarantine/`; what an ended
process left is removed. Plans, records and models of a grid are looked at in `report/grid_folder.py`.

    for finding in findings(store): print(finding.part, finding.problem)
    for path in leftovers(store): ...               # what ended processes left, as `gc` clears it
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.store.integrity import Damage, damage, largest_hashed, set_aside, suspects
from harness.store.liveness import STALE_SECONDS, owner_runs
from harness.store.store import Store
from harness.store.whole_checkpoint import read_checkpoint

UNFINISHED = re.compile(r"\..*[0-9a-f]{32}(\.\d+-\d+-[0-9a-f]{12})?$|\.(results|summary)\.\d+\.(parquet|csv)$")
"""Names under which files are written before they are renamed, those of earlier versions too."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written."""

    part: str
    """The folder of the store, e.g. `objects`."""
    problem: str
    """What is wrong, with the name of the file."""
    mend: Callable[[], str] | None = None
    """Mends it, and returns what was done; null where only the user can."""


def findings(store: Store, verify: str = "full") -> Iterator[Finding]:
    """Artifacts, claims, attempts, checkpoints, submissions and leftovers that are not as they should be.

    `verify`: `full` hashes every file of every artifact, `size` compares sizes. Raises OSError where a folder cannot be
    listed.
    """
    yield from _objects(store, verify)
    yield from _attempts(store)
    yield from _checkpoints(store)
    yield from _submissions(store)
    for key, why in suspects(store).items():
        yield Finding(
            "suspect", f"{why}; `fsck --set-aside {key}` lets the next run of its grid make it again if a cell needs it"
        )
    for path in leftovers(store):
        name = path.relative_to(store.root).as_posix()
        yield Finding("leftover", f"{name} is of a process that has ended", partial(_removed, store, path))


def leftovers(store: Store) -> Iterator[Path]:
    """What processes left that have ended: scratch folders, unfinished files, claims, checkpoints of what is done."""
    for path in _entries(store.root / "tmp"):
        # a scratch folder begins with its stage's key; while the stage is claimed, an attempt is writing it
        if _left(path, claimed=store.claimed(path.name.split(".")[0])):
            yield path
    for path in _entries(store.root / "claims"):
        # of earlier versions: the file of a stale claim, renamed to be removed
        if "." in path.name and not UNFINISHED.match(path.name):
            if _left(path):
                yield path
        elif not path.name.startswith(".") and not store.claimed(path.name):
            yield path
    for folder in _entries(store.root / "checkpoints"):
        if store.done(folder.name) and not store.claimed(folder.name):
            yield folder
        elif folder.is_dir() and not store.claimed(folder.name):
            yield from (path for path in _entries(folder) if path.name.startswith(".") and _left(path))
    places = [str(store.root), *(str(store.root / name) for name in ("jobs", "claims", "servers", "quarantine"))]
    places += [f"{store.root}/attempts/{name}" for name in ("", *_names(f"{store.root}/attempts"))]
    for name in ("grids", "submissions", "models"):
        places += [folder for folder, _, _ in os.walk(store.root / name)]
    for place in places:
        # names first: there may be tens of thousands of folders, each with a file or two
        for name in _names(place):
            if name.startswith(".") and UNFINISHED.match(name) and _left(path := Path(place, name)):
                yield path


def remove(store: Store, path: Path) -> None:
    """Remove a file or folder of the store: gone at once for readers, then file by file. Raises OSError."""
    grave = store.root / "tmp" / f"gone.{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):
        os.rename(path, grave)
        shutil.rmtree(grave) if grave.is_dir() and not grave.is_symlink() else grave.unlink()


def _objects(store: Store, verify: str) -> Iterator[Finding]:
    for shelf in _entries(store.root / "objects"):
        for folder in _entries(shelf) if shelf.is_dir() else [shelf]:
            key = folder.name
            if not folder.is_dir() or store.folder(key) != folder:
                name = folder.relative_to(store.root).as_posix()
                yield _aside(store, "objects", folder, f"{name} is no artifact of this store")
                continue
            try:
                found = damage(store, key, largest_hashed(verify))
            except OSError as error:
                found = Damage(key, f"it cannot be read ({error.strerror or error})", folder.stat().st_ino)
            if found is not None:
                yield Finding("objects", f"{key}: {found.problem}", partial(set_aside, store, found))


def _attempts(store: Store) -> Iterator[Finding]:
    for folder in _entries(store.root / "attempts"):
        if not folder.is_dir():
            if not UNFINISHED.match(folder.name):
                yield _aside(store, "attempts", folder, f"attempts/{folder.name} is no folder of attempts")
            continue
        for path in _entries(folder):
            name = f"attempts/{folder.name}/{path.name}"
            if UNFINISHED.match(path.name):
                continue  # of a running process, or a leftover
            if not re.fullmatch(r"\d+\.json", path.name):
                yield _aside(store, "attempts", path, f"{name} is no attempt")
            elif not isinstance(_json(path), dict) and not store.claimed(folder.name):
                yield _aside(store, "attempts", path, f"{name} is empty or cut off")


def _checkpoints(store: Store) -> Iterator[Finding]:
    for folder in _entries(store.root / "checkpoints"):
        if store.claimed(folder.name) or store.done(folder.name):
            continue
        for path in _entries(folder) if folder.is_dir() else [folder]:
            name = path.relative_to(store.root).as_posix()
            if path.name.startswith("step-") and path.is_dir():
                if not read_checkpoint(path):
                    yield _aside(store, "checkpoints", path, f"{name}: a file is missing, cut off or was changed")
            elif path == folder:
                yield _aside(store, "checkpoints", path, f"{name} is no folder of checkpoints")


def _submissions(store: Store) -> Iterator[Finding]:
    for path in sorted((store.root / "submissions").glob("*/*.json")):
        if not UNFINISHED.match(path.name) and _json(path) is None:
            name = path.relative_to(store.root).as_posix()
            yield _aside(store, "submissions", path, f"{name} is empty or cut off: its jobs cannot be found any more")
    for path in _entries(store.root / "jobs"):
        if not path.name.startswith(".") and _json(path) is None and _age(path) > STALE_SECONDS:
            yield _aside(store, "submissions", path, f"jobs/{path.name} is empty or cut off")


def _aside(store: Store, part: str, path: Path, problem: str) -> Finding:
    def mend() -> str:
        aside = store.set_file_aside(path, problem)
        return "it is gone" if aside is None else f"set aside as quarantine/{aside.name}"

    return Finding(part, problem, mend)


def _removed(store: Store, path: Path) -> str:
    remove(store, path)
    return "removed"


def _left(path: Path, claimed: bool = False) -> bool:
    """Whether the process that wrote an unfinished file or folder has ended; where it cannot be looked up, by age."""
    runs = owner_runs(path.name)
    if runs is not None:
        return not runs
    return not claimed and _age(path) > STALE_SECONDS


def _age(path: Path) -> float:
    """Seconds since anything in a file or folder was last touched."""
    try:
        newest = path.lstat().st_mtime
        for folder, _, files in os.walk(path):
            for name in (".", *files):
                with suppress(FileNotFoundError):
                    newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    except FileNotFoundError:
        return 0.0
    return time.time() - newest


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _json(path: Path) -> Any:
    """A file's JSON; None where there is none."""
    try:
        return json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError):
        return None
