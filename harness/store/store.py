"""The store: immutable artifacts, attempts and claims in one folder that many processes may share.

    objects/ab/<key>/      a finished artifact; its manifest.json is the only meaning of done
    tmp/                   artifacts being written; renamed into objects/ when complete
    attempts/<key>/<n>.json  every attempt at a stage: host, process, progress, how it ended
    checkpoints/<key>/     what a stopped attempt left for the next one; gone once the artifact is published
    claims/<key>           an advisory lease: an attempt is under way
    grids/<name>/          a grid's plan, records and results
    models/<grid>/<cell>/  a finished student: links to its artifact's files, and its receipt
    submissions/<name>/    what was sent to a cluster at once, and what its jobs printed
    quarantine/            damaged artifacts and files, set aside and never deleted, each with a note of the reason
    jobs/<key>             which job of a cluster makes the artifact
    code/<hash>/           the code such jobs run
    servers/               address files of the teacher servers that the cluster runs, and the arrays that need them
    store.json             the marker by which a folder is known as a store

Publishing is one rename of a folder whose manifest was written last, so a killed process leaves nothing half
published, and of two processes that finish the same stage the second discards its copy. Leases save duplicate work;
correctness never depends on them. Whether a published artifact is still what was published is in `integrity.py`.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError, refuse
from harness.config.file_hash import file_sha256, note_content
from harness.store.liveness import LOST_SECONDS, STALE_SECONDS, is_stopped, owner, runs, seen_silent, this_process

MARKER = "store.json"
REPAIR = (
    "run its grid's command again, which sets it aside and makes what is needed again, or see "
    "`python -m harness.grid fsck`"
)
FOLDERS = ("objects", "tmp", "attempts", "checkpoints", "claims", "grids")

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system without hard links answers."""


class DamagedError(SettingsError):
    """An artifact, or a file of the store, that is not what was written; the sentence names it and the way out."""


@dataclass(frozen=True)
class Store:
    """One store folder; every path in it is made here."""

    root: Path

    @classmethod
    def at(cls, root: str | Path) -> "Store":
        """The store at `root`, to be read; nothing is created or checked."""
        # absolute, since the path is written into submissions and passed to workers
        return cls(Path(root).expanduser().absolute())

    @classmethod
    def open(cls, root: str | Path) -> "Store":
        """The store at `root`, created if absent; raises SettingsError where it cannot be written."""
        store = cls.at(root)
        try:
            for name in FOLDERS:
                (store.root / name).mkdir(parents=True, exist_ok=True)
            store.mark()
            # mkdir succeeds on folders that exist; only a new file shows that the store can be written
            probe = store.root / "tmp" / f"probe-{uuid.uuid4().hex}.{owner()}"
            try:
                probe.write_text("")
                store._check_file_systems(probe)
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            dangling = store.root.is_symlink() and not store.root.exists()
            why = f"it is a link to {os.readlink(store.root)}, which is absent" if dangling else error.strerror
            raise refuse(
                "store",
                str(store.root),
                f"the folder cannot be written ({why})",
                "choose another with store=<folder>",
            ) from error
        return store

    def is_store(self) -> bool:
        """Whether the folder is a store: by its marker, or one of an earlier version by its layout."""
        return (self.root / MARKER).is_file() or all((self.root / name).is_dir() for name in FOLDERS[:3])

    def mark(self) -> None:
        """Write the marker unless it is there. Raises OSError where the store cannot be written."""
        if not (self.root / MARKER).is_file():
            write_json(self.root / MARKER, {"layout": 1, "written_by": "harness"})

    def _check_file_systems(self, probe: Path) -> None:
        """Refuse a store whose folders lie on several file systems, which no rename crosses.

        Where the file system has no hard links, a warning says what that costs.
        """
        device = (self.root / "tmp").stat().st_dev
        for name in ("objects", "checkpoints", "claims"):
            if (self.root / name).stat().st_dev != device:
                raise refuse(
                    "store",
                    str(self.root),
                    f"{name}/ and tmp/ lie on different file systems, and artifacts are renamed from one to the other",
                    "keep both on one, or choose another with store=<folder>",
                )
        link = probe.with_name(f"probe-{uuid.uuid4().hex}.{owner()}")
        try:
            os.link(probe, link)
            link.unlink()
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            print(
                f"warning: the file system of store={str(self.root)!r} has no hard links: where a process is killed "
                f"while it takes a stage, the stage waits for {STALE_SECONDS // 60} minutes",
                file=sys.stderr,
            )

    def folder(self, key: str) -> Path:
        """Where the artifact of `key` is, or will be."""
        digest = key.rsplit("-", 1)[-1]
        return self.root / "objects" / digest[:2] / key

    def grid_folder(self, grid: str) -> Path:
        """The folder of a grid's plan, records and results."""
        return self.root / "grids" / grid

    def model_folder(self, grid: str, cell: str) -> Path:
        """The folder in which a finished student is found by name."""
        return self.root / "models" / grid / cell

    def checkpoints(self, key: str) -> Path:
        """Where attempts at `key` leave their checkpoints, or will."""
        return self.root / "checkpoints" / key

    def done(self, key: str) -> bool:
        """Whether the artifact is published; one whose manifest is missing or empty is not."""
        try:
            return (self.folder(key) / "manifest.json").stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def manifest(self, key: str) -> dict[str, Any]:
        """The manifest of a published artifact.

        Raises FileNotFoundError where it is not published, DamagedError where the file is not what was published.
        """
        text = (self.folder(key) / "manifest.json").read_text(errors="replace")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("seal", "") not in ("", _seal(found)):
            problem = "manifest.json is empty" if not text else "manifest.json is cut off or was changed"
            raise DamagedError(f"{key} in the store {self.root} is damaged: {problem}; {REPAIR}.")
        return found

    @contextmanager
    def scratch(self, key: str) -> Iterator[Path]:
        """A fresh folder under tmp/, removed afterwards unless it was published.

        Raises OSError where it cannot be made.
        """
        # in the store, and not in the system's temporary folder: a rename cannot cross file systems
        folder = self.root / "tmp" / f"{key}.{uuid.uuid4().hex}.{owner()}"
        folder.mkdir()
        try:
            # Held open: while it is, no other folder gets this one's number, so `publish` can tell them apart.
            descriptor = _scratch_folders[folder] = os.open(folder, os.O_RDONLY)
            try:
                yield folder
            finally:
                del _scratch_folders[folder]
                os.close(descriptor)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, key: str, written: Path, manifest: Mapping[str, Any]) -> Path:
        """Make `written` the artifact of `key`; an artifact that another process published first stays in its place.

        Raises ValueError where the manifest holds NaN or infinity, OSError where the files cannot be read or moved,
        FileNotFoundError where `written` is no longer the folder that `scratch` made.
        """
        _check_not_replaced(written)
        files = {
            str(path.relative_to(written)): {"size": path.stat().st_size, "sha256": file_sha256(path, remember=False)}
            for path in sorted(written.rglob("*"))
            if path.is_file()
        }
        # On a shared file system a rename may survive a crash that the files' content does not, so all is synced first.
        whole = {**manifest, "files": files}
        write_json(written / "manifest.json", {**whole, "seal": _seal(whole)})
        fsync_tree(written)
        _check_not_replaced(written)  # again, since hashing takes its time
        target = self.folder(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _rename_into_place(self, key, written, target)
            for name, file in files.items():
                note_content(target / name, str(file["sha256"]))
        except OSError:  # the target exists where another process published it first; anything else is a fault
            if not self.done(key):
                raise
        fsync(target.parent)
        # after the rename is on disk: until then the checkpoints are all that a crash would leave
        shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        return target

    def set_aside(self, key: str, reason: str, inode: int | None = None, **more: Any) -> Path | None:
        """Move a damaged artifact into `quarantine/`, with a note of the reason beside it; the path, or None.

        Of several processes one moves it, and the others get None, as does a caller whose `inode` is not that of the
        folder any more: it was made again in the meantime. Raises OSError where the folder cannot be moved.
        """
        folder = self.folder(key)
        try:
            if inode is not None and folder.stat().st_ino != inode:
                return None
            aside = self._moved_aside(folder)
        except FileNotFoundError:
            return None
        if inode is not None and aside.stat().st_ino != inode:  # replaced between the two lines above: put it back
            with suppress(OSError):
                os.rename(aside, folder)
            return None
        note = {"key": key, "reason": reason, "time": time.time(), **more}
        write_json(aside.with_name(f"{aside.name}.json"), note)
        return aside

    def set_file_aside(self, path: Path, reason: str) -> Path | None:
        """Move a file or folder of the store, other than an artifact, into `quarantine/`; None where it is gone.

        Raises OSError where it cannot be moved.
        """
        try:
            aside = self._moved_aside(path)
        except FileNotFoundError:
            return None
        note = {"path": str(path.relative_to(self.root)), "reason": reason, "time": time.time()}
        write_json(aside.with_name(f"{aside.name}.json"), note)
        return aside

    def quarantine(self) -> list[dict[str, Any]]:
        """The notes of all that was set aside, oldest first; each has `key` or `path`, `reason`, `time`, `aside`."""
        found = []
        for path in (self.root / "quarantine").glob("*.json"):
            with suppress(OSError, ValueError, TypeError):
                found.append({**json.loads(path.read_text()), "aside": path.name.removesuffix(".json")})
        return sorted(found, key=lambda note: note.get("time", 0.0))

    def _moved_aside(self, path: Path) -> Path:
        place = self.root / "quarantine"
        place.mkdir(exist_ok=True)
        # never a name that is taken: a rename replaces a file
        aside = place / f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        os.rename(path, aside)
        return aside

    def published(self) -> list[str]:
        """Keys of all published artifacts."""
        return sorted(path.parent.name for path in (self.root / "objects").glob("*/*/manifest.json"))

    def claim(self, key: str) -> "Lease | None":
        """Take the lease on `key`; None while a live attempt holds it.

        Raises OSError where the store cannot be written.
        """
        path = self.root / "claims" / key
        note = {**this_process(), "nonce": uuid.uuid4().hex, "started": time.time()}
        # Whoever creates the file holds the lease. The second try follows the removal of a stale lease; where it fails
        # too, another process was faster and holds the lease.
        for _ in range(2):
            if self._create_lease(path, note):
                return Lease(path, note["nonce"])
            if self.claimed(key):
                return None
            self._remove_stale(path)
        return None

    def _create_lease(self, path: Path, note: Mapping[str, Any]) -> bool:
        """Create a lease's file with its content; False where there is one."""
        # Written aside and linked: the file appears with its content, so a killed process leaves a whole lease or none,
        # and of several processes one creates it.
        aside = self.root / "tmp" / f"{path.name}.{note['nonce']}.lease.{owner()}"
        try:
            aside.write_text(json.dumps(note))
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            # ENOENT: `gc` has removed the file, which it takes for a leftover of a killed process
            if error.errno not in (*NO_LINKS, errno.ENOENT):
                raise
            try:
                with open(path, "x") as file:
                    json.dump(note, file)
            except FileExistsError:
                return False
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        return True

    def _remove_stale(self, path: Path) -> None:
        """Remove a stale lease.

        Of two processes that do this at once, the slower may remove the lease that the faster has just taken. Then both
        make the stage, and one of them publishes it.
        """
        stale = self.root / "tmp" / f"{path.name}.{uuid.uuid4().hex}.stale.{owner()}"
        # a rename succeeds for one of two processes; the other finds no file
        with suppress(FileNotFoundError):
            os.rename(path, stale)
            stale.unlink()

    def claimed(self, key: str) -> bool:
        """Whether a live attempt holds the lease on `key`; changes nothing.

        Raises OSError where the store cannot be read.
        """
        path = self.root / "claims" / key
        try:
            # opened before its time is read: a shared file system then asks its server for both
            with open(path) as file:
                text, beat = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        if seen_silent(path, beat) >= LOST_SECONDS:
            return False
        age = time.time() - beat / 1e9
        try:
            note = json.loads(text)
            if note["nonce"] in _given_back:
                return False
            living = runs(note)
            # of an earlier version, whose note of the process's start moves when the clock is set
            living = True if living is False and "ticks" not in note and age < LOST_SECONDS else living
        except (ValueError, KeyError, TypeError):  # it is being written, or a crash cut it off
            return age < STALE_SECONDS
        # a process can be looked up on its own machine only; of one elsewhere only the heartbeat shows
        if living is None:
            return age < STALE_SECONDS
        return living and not (age >= LOST_SECONDS and is_stopped(note["pid"]))

    def silent_seconds(self, key: str) -> float:
        """For how long this process has seen the lease on `key` without a heartbeat; 0 where there is none."""
        path = self.root / "claims" / key
        try:
            with open(path) as file:
                return seen_silent(path, os.fstat(file.fileno()).st_mtime_ns)
        except OSError:
            return 0.0

    def attempts(self, key: str) -> list[dict[str, Any]]:
        """Every attempt at `key`, oldest first. Raises OSError where the store cannot be read."""
        return [_read_attempt(path) for path in _numbered(self.root / "attempts" / key).values()]

    def last_attempt_file(self, key: str) -> Path | None:
        """The file of the last attempt at `key`; None where there was none."""
        return next(reversed(_numbered(self.root / "attempts" / key).values()), None)

    def new_attempt(self, key: str) -> Path:
        """Reserve the next attempt file of `key`. Raises OSError where the store cannot be written."""
        folder = self.root / "attempts" / key
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max(_numbered(folder), default=0)
        while True:
            try:
                with open(folder / f"{number}.json", "x") as file:
                    file.write("{}")
                return folder / f"{number}.json"
            except FileExistsError:
                # another process has reserved this number since the folder was listed
                number += 1


@dataclass(frozen=True)
class Lease:
    """The right to make one stage, held by one process; `beat` keeps it alive, `release` gives it back."""

    path: Path
    nonce: str

    def beat(self) -> None:
        """Show other machines that the attempt is alive."""
        # gone or taken over, or a transient fault of a shared folder: the next beat tries again
        with suppress(OSError, ValueError):
            if json.loads(self.path.read_text())["nonce"] == self.nonce:
                os.utime(self.path)

    def release(self) -> None:
        """Give the lease back; a lease that another process has taken over stays.

        Where the store cannot be written the file stays too; it holds nothing for this process any more, nor for
        others when this process has ended.
        """
        _given_back.add(self.nonce)
        with suppress(OSError, ValueError):
            # Where the lease is taken over between these two lines, the file of its new holder is removed. Then two
            # processes may make the stage, and one of them publishes it.
            if json.loads(self.path.read_text())["nonce"] == self.nonce:
                self.path.unlink()


def read_json(path: Path) -> Any:
    """The value of a JSON file that was written whole.

    Raises DamagedError, which names the file, where it is not JSON any more, OSError where it cannot be read.
    """
    text = path.read_text(errors="replace")
    try:
        return json.loads(text)
    except ValueError as error:
        problem = "it is empty" if not text.strip() else f"it is cut off or was changed ({error})"
        raise DamagedError(f"{path} cannot be read: {problem}; {REPAIR}.") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that readers see the old file or the new one, never a part.

    Raises ValueError for NaN and infinity, TypeError for what JSON cannot hold, OSError where it cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one, never a part.

    Raises OSError where it cannot be written.
    """
    with replacing(path) as unfinished, open(unfinished, "w") as file:
        file.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which it replaces at the end of the block: readers see the old one or the new one.

    Where the block fails, the old file stays and the other one is removed. Raises OSError where it cannot be written.
    """
    # a name of its own for each writer, and one that no reader's glob for *.json finds
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.{owner()}")
    try:
        yield unfinished
        fsync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def age_of(path: Path) -> float:
    """Seconds since the file was last touched; infinite when it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _read_attempt(path: Path) -> dict[str, Any]:
    """An attempt's file as a dict; empty while it is first written, or where a crash left it empty."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _numbered(folder: Path) -> dict[int, Path]:
    """The attempt files of a folder by number, in their order; a file of another name is none."""
    found = {int(path.stem): path for path in folder.glob("*.json") if path.stem.isdecimal() and path.is_file()}
    return dict(sorted(found.items()))  # 10 follows 9


def _seal(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest without its seal: a manifest whose numbers were changed is not the one published."""
    rest = {name: value for name, value in manifest.items() if name != "seal"}
    # read back before it is hashed: JSON makes lists of tuples, and text of the keys of a dict
    text = json.dumps(json.loads(json.dumps(rest, allow_nan=False)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _rename_into_place(store: Store, key: str, written: Path, target: Path) -> None:
    """Rename a whole artifact to its place; a folder there that has no manifest is set aside first."""
    try:
        os.rename(written, target)
    except OSError:
        if not target.is_dir() or store.done(key):
            raise
        store.set_aside(key, "manifest.json is missing or empty", target.stat().st_ino)
        os.rename(written, target)


_given_back: set[str] = set()
"""Nonces of the leases that this process has released, whose files a store that fails may have kept."""
_scratch_folders: dict[Path, int] = {}
"""Open descriptors of the folders that `Store.scratch` of this process made and has not removed."""


def _check_not_replaced(folder: Path) -> None:
    """Raise FileNotFoundError where a scratch folder is gone or another of its name: files of it would be missing."""
    descriptor = _scratch_folders.get(folder)
    if descriptor is None:
        return
    made = os.fstat(descriptor)
    now = folder.stat() if folder.exists() else None
    if now is None or (made.st_dev, made.st_ino) != (now.st_dev, now.st_ino):
        raise FileNotFoundError(f"{folder} was removed while its artifact was made, so files of it are missing")


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk. Raises OSError where it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Wait until a folder and everything in it is on disk. Raises OSError as `fsync` does."""
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)
