"""Integrity: whether a published artifact is still what was published, and what to do where it is not.

Sizes are compared with the manifest always. The content is hashed once per process and file before a stage uses it
(`verify=full`), or trusted (`verify=size`). A damaged artifact is set aside in the store's `quarantine/`, so that it is
made again like one that never was; what was made from it is named.

    check_inputs(store, spec)                        # before a stage is made; raises InputError
    set_aside_damaged(store, keys, "full")           # before a grid is run; returns a sentence for each
    artifact_file(store, key, "scores.json")         # before a file is read for tables; raises DamagedError
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError
from harness.config.file_hash import content_sha256
from harness.store.store import REPAIR, DamagedError, Store

VERIFY = ("full", "size")
SMALL = 2**20
"""Bytes up to which a file is hashed wherever it is looked at; larger ones are hashed before they are used."""
CLOCK_SECONDS = 2.0
"""File systems round the time of a change; a file changed this much after its publication was changed after it."""


class InputError(SettingsError):
    """An input of a stage is damaged or gone; the run that needs it makes it again."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with a published artifact."""

    key: str
    problem: str
    """The file and what is wrong with it, in a few words."""
    inode: int
    """Of the artifact's folder, by which an artifact that was made again in the meantime is known."""
    since: float | None = None
    """When it was damaged, in seconds since 1970; null where the files' times do not show it."""


def damage(store: Store, key: str, largest: float = float("inf")) -> Damage | None:
    """What is wrong with an artifact; None where it is whole or not there.

    Files of up to `largest` bytes are hashed, and of all others the size is compared. Raises OSError where a file
    cannot be read.
    """
    folder = store.folder(key)
    try:
        inode, changed = folder.stat().st_ino, folder.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = store.manifest(key)
    except (FileNotFoundError, NotADirectoryError):
        # it may have been set aside since the first line
        return Damage(key, "manifest.json is missing", inode, time.time()) if folder.is_dir() else None
    except DamagedError:
        path = folder / "manifest.json"
        empty = path.is_file() and not path.stat().st_size
        # no file that a stage reads is known to be damaged, so nothing made from it is suspect
        return Damage(key, f"manifest.json is {'empty' if empty else 'cut off or was changed'}", inode, time.time())
    files = manifest.get("files")
    if not isinstance(files, dict):
        return Damage(key, "manifest.json states no files", inode, time.time())
    for name, stated in files.items():
        if problem := _problem(folder / name, name, stated, largest):
            if (folder / name).is_file():
                changed = (folder / name).stat().st_mtime
            return Damage(key, problem, inode, _after(manifest, changed))
    return None


def check_inputs(store: Store, spec: Mapping[str, Any], verify: str = "full") -> None:
    """Verify what a stage is about to use, and set aside what is damaged.

    `spec` is a stage's (`plan.graph.Stage.spec`). Raises InputError where an input is damaged or not in the store;
    OSError where a file cannot be read.
    """
    told = []
    for key in dict.fromkeys(spec["inputs"].values()):
        found = damage(store, key, largest_hashed(verify))
        if found is not None:
            told.append(set_aside(store, found))
        elif not store.done(key):
            told.append(f"{key} is not in the store {store.root}.")
    if told:
        raise InputError(f"{spec['address']} needs another input: " + " ".join(told))


def set_aside(store: Store, found: Damage) -> str:
    """Move a damaged artifact into `quarantine/`; returns the sentence that names it and what was made from it."""
    suspects = made_from(store, found.key, found.since)
    aside = store.set_aside(found.key, found.problem, found.inode, since=found.since, suspects=suspects)
    if aside is None:
        return f"{found.key} was damaged ({found.problem}); another process has set it aside."
    said = f"{found.key} is damaged: {found.problem}. It is set aside as quarantine/{aside.name}."
    if suspects:
        when = f"after the damage of {_clock(found.since)}" if found.since else "at a time that may be after the damage"
        names = ", ".join(suspects[:8]) + (f" and {len(suspects) - 8} more" if len(suspects) > 8 else "")
        said += (
            f" Made from it {when}, so perhaps with wrong numbers: {names}; "
            "`python -m harness.grid fsck --set-aside KEY` lets the next run make one again."
        )
    return said


def set_aside_damaged(store: Store, keys: Iterable[str], verify: str = "full") -> dict[str, str]:
    """Set aside the damaged ones of some artifacts; by key, the sentence that names each.

    Sizes are compared, and with `verify=full` files of up to `SMALL` bytes are hashed: larger ones are, before a stage
    uses them. Raises OSError where a file cannot be read.
    """
    largest = min(SMALL, largest_hashed(verify))
    return {key: set_aside(store, found) for key in keys if (found := damage(store, key, largest)) is not None}


def artifact_file(store: Store, key: str, name: str) -> Path:
    """One file of a published artifact, to be read: of the size and, up to `SMALL` bytes, the content published.

    Raises DamagedError, which names artifact and file, where it is not; FileNotFoundError where the artifact is not
    published; OSError where the file cannot be read.
    """
    path, stated = store.folder(key) / name, (store.manifest(key).get("files") or {}).get(name)
    problem = f"its manifest states no {name}" if stated is None else _problem(path, name, stated, SMALL)
    if problem:
        raise DamagedError(f"{key} in the store {store.root} is damaged: {problem}; {REPAIR}.")
    return path


def made_from(store: Store, key: str, since: float | None = None) -> list[str]:
    """Published artifacts that were made from `key`, directly or through others, after `since`; all where it is null.

    In the order of their publication.
    """
    made = dict(_manifests(store))
    found: dict[str, None] = {}
    reached = {key}
    # an artifact is published after its inputs, so one pass in this order reaches users of users too
    for user, manifest in sorted(made.items(), key=lambda item: item[1].get("published", 0.0)):
        if reached & set((manifest.get("inputs") or {}).values()):
            reached.add(user)
            if since is None or manifest.get("published", 0.0) >= since:
                found[user] = None
    return list(found)


def suspects(store: Store) -> dict[str, str]:
    """By key, why a published artifact may hold numbers of a damage: it was made from an artifact set aside since."""
    found: dict[str, str] = {}
    for note in store.quarantine():
        for key in note.get("suspects") or ():
            try:
                published = store.manifest(key).get("published", 0.0)
            except (FileNotFoundError, DamagedError):
                continue
            if published < note["time"]:  # else it was made again
                found[key] = f"{key} was made from {note['key']}, which was damaged: {note['reason']}"
    return found


def verifying(verify: str) -> dict[str, str]:
    """The field `verify` of a stage's spec, where its inputs are not verified in full; empty elsewhere."""
    return {} if verify == "full" else {"verify": verify}


def _problem(path: Path, name: str, stated: Mapping[str, Any], largest: float) -> str | None:
    """What is wrong with one file of an artifact, whose content is hashed up to `largest` bytes; None: it is whole.

    Raises OSError where it cannot be read.
    """
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    if size != stated["size"]:
        has = "is empty" if not size else f"has {size:,} bytes"
        return f"{name} {has}, not the {stated['size']:,} that were published"
    if size <= largest and content_sha256(path) != stated["sha256"]:
        return f"{name} has another content than was published (its sha256 differs)"
    return None


def largest_hashed(verify: str) -> float:
    """Bytes up to which `verify` has a file hashed: any number for `full`, none at all for `size`."""
    return float("inf") if verify == "full" else -1


def _after(manifest: Mapping[str, Any], changed: float) -> float | None:
    """The time of a change where it lies after the publication; else None: the file's time does not show it."""
    published = manifest.get("published")
    return changed if isinstance(published, int | float) and changed > published + CLOCK_SECONDS else None


def _manifests(store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in store.published():
        try:
            yield key, store.manifest(key)
        except (FileNotFoundError, DamagedError):
            continue


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
