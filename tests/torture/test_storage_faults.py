"""Real file systems that are full, read-only or apart: small ones in memory, where mounting is allowed."""

import subprocess

import pytest

import harness.api as harness
from harness.config.cell import Settings
from harness.config.checks import SettingsError
from harness.config.machine import Launch
from harness.execution.executor import execute
from harness.report.__main__ import main as report
from harness.store.storage_error import StorageError
from harness.store.store import Store
from tests.torture.cells import CHEAP_MAKERS, Silent, cheap_plan

SMALL = {
    "method": "sft",
    "data_frac": 0.1,
    "corpus__rows": 240,
    "corpus__heldout_per_source": 4,
    "student__init": "random",
    "student__size": "tiny",
    "budget__amount": 2,
    "budget__batch_size": 8,
    "measure__formats": [[]],
}


def mount(*arguments):
    """Mount or unmount; skips the test where that is not allowed."""
    made = subprocess.run([*arguments], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"{arguments[0]} is not allowed here: {made.stderr.strip()}")


def remount(disk, options):
    """Change a file system that is mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 1.3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def settings():
    return Settings(method=None, corpus=None, launch=Launch(kind="inline"))


def test_a_full_disk_ends_a_run_in_one_sentence_and_the_same_call_goes_on_when_there_is_room(disk, capsys):
    store = disk / "store"

    def call():
        return harness.run(harness.grid(**SMALL), store=str(store), grid="full", launch=Launch(kind="inline"))

    with pytest.raises(StorageError) as caught:
        call()
    said = str(caught.value)
    assert said.startswith(f"store='{store}' failed: No space left on device") and "\n" not in said
    assert "MB are free" in said and "0.6 MB are needed for the weights" in said and "the same command goes on" in said
    made = set(Store.at(store).published())
    assert made and list((store / "tmp").iterdir()) == []  # what was finished is kept, and half an artifact is not
    remount(disk, "size=16m")
    finished = call()
    assert {record.status for record in finished.records} == {"done"} and made < set(Store.at(store).published())

    # a report beside it, where the disk is full again
    with pytest.raises(OSError, match="No space left"), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    capsys.readouterr()
    assert report(["full", "--store", str(store)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said


def test_a_store_that_becomes_read_only_ends_the_run_at_once_and_not_cell_by_cell(disk, monkeypatch):
    for module in ("harness.plan.graph", "harness.execution.executor"):
        monkeypatch.setattr(f"{module}.MAKERS", CHEAP_MAKERS)
    monkeypatch.setattr("harness.execution.executor.stage_seconds", lambda stage: 1.0)
    plan, store, started = cheap_plan(5), Store.open(disk / "store"), []
    publish = Store.publish

    def publish_once(self, key, *rest):
        started.append(key)
        if len(started) == 3:
            remount(disk, "ro")
        return publish(self, key, *rest)

    with monkeypatch.context() as patch, pytest.raises(StorageError) as caught:
        patch.setattr(Store, "publish", publish_once)
        execute(plan, store, settings(), Silent())
    said = str(caught.value)
    assert "Read-only file system at " in said and "mount the file system writable" in said and "\n" not in said
    assert len(started) == 3 < len(plan.stages) and len(store.published()) == 2

    remount(disk, "rw")
    states = execute(plan, store, settings(), Silent())  # without `retry`
    assert {state.status for state in states.values()} == {"done"}
    assert len(store.published()) == len(plan.stages)


def test_a_store_whose_folders_lie_on_two_file_systems_is_refused_when_it_is_opened(disk, tmp_path):
    Store.open(tmp_path / "store")
    mount("mount", "--bind", str(disk), str(tmp_path / "store" / "tmp"))
    try:
        with pytest.raises(SettingsError, match="objects/ and tmp/ lie on different file systems"):
            Store.open(tmp_path / "store")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "store" / "tmp")], check=True)
