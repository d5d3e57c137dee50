"""What is damaged is found, named and set aside once; what is whole stays."""

import json
import multiprocessing
import os
import time

import pytest

from harness.config import file_hash
from harness.store import integrity
from harness.store.integrity import (
    InputError,
    artifact_file,
    check_inputs,
    damage,
    made_from,
    set_aside,
    set_aside_damaged,
    suspects,
)
from harness.store.store import DamagedError, Store, write_json

BASE, TRAIN, EVALUATE = ("base-" + "aa" * 16, "train-" + "bb" * 16, "evaluate-" + "cc" * 16)
SPEC = {"key": TRAIN, "address": "train-sft-bb", "inputs": {"start": BASE, "teacher": BASE}}


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def publish(store, key, inputs=(), **files):
    with store.scratch(key) as out:
        for name, content in (files or {"weights": b"0123456789"}).items():
            (out / name).write_bytes(content)
        roles = {str(number): one for number, one in enumerate(inputs)}
        return store.publish(key, out, {"facts": {"seconds": 1.5}, "inputs": roles, "published": time.time()})


def flip(path, keep_times=False):
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def forget():
    """What another process knows: nothing has been hashed."""
    file_hash._contents.clear()


DAMAGES = {
    "a flipped bit": (lambda folder: flip(folder / "weights"), "weights has another content"),
    "a flipped bit, times kept": (lambda folder: flip(folder / "weights", True), "weights has another content"),
    "cut": (lambda folder: os.truncate(folder / "weights", 4), "weights has 4 bytes, not the 10"),
    "emptied": (lambda folder: os.truncate(folder / "weights", 0), "weights is empty, not the 10"),
    "longer": (lambda folder: os.truncate(folder / "weights", 11), "weights has 11 bytes, not the 10"),
    "deleted": (lambda folder: (folder / "weights").unlink(), "weights is missing"),
    "manifest deleted": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest emptied": (lambda folder: os.truncate(folder / "manifest.json", 0), "manifest.json is empty"),
    "manifest cut": (lambda folder: os.truncate(folder / "manifest.json", 40), "manifest.json is cut off"),
    "manifest a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is cut off"),
    "a cost changed": (
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace("1.5", "9.5")
        ),
        "manifest.json is cut off or was changed",
    ),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named_set_aside_once_and_the_stage_can_be_made_again(store, how):
    spoil, problem = DAMAGES[how]
    folder = publish(store, BASE)
    assert damage(store, BASE) is None
    spoil(folder)
    forget()
    with pytest.raises(InputError, match=f"train-sft-bb needs another input: {BASE} is damaged: {problem}.*quarantine"):
        check_inputs(store, SPEC)
    assert not store.done(BASE) and not folder.exists()
    (note,) = store.quarantine()
    assert note["key"] == BASE and problem in note["reason"]
    assert (store.root / "quarantine" / note["aside"]).is_dir()  # set aside, not deleted
    with pytest.raises(InputError, match=f"{BASE} is not in the store"):
        check_inputs(store, SPEC)
    publish(store, BASE)
    check_inputs(store, SPEC)
    assert len(store.quarantine()) == 1


def test_size_alone_finds_what_is_cut_and_trusts_the_content(store):
    folder = publish(store, BASE)
    flip(folder / "weights", keep_times=True)
    forget()
    check_inputs(store, SPEC, "size")
    os.truncate(folder / "weights", 3)
    with pytest.raises(InputError, match="has 3 bytes"):
        check_inputs(store, SPEC, "size")


def test_a_file_is_hashed_once_in_a_process_and_what_it_published_not_again(store, monkeypatch):
    hashed = []
    real = file_hash._hash
    monkeypatch.setattr(file_hash, "_hash", lambda path: hashed.append(path.name) or real(path))
    folder = publish(store, BASE, weights=b"x" * 100, config=b"{}")
    assert sorted(hashed) == ["config", "weights"]  # by the publication
    for _ in range(3):
        check_inputs(store, SPEC)
    assert len(hashed) == 2
    forget()
    for _ in range(3):
        check_inputs(store, SPEC)
    assert len(hashed) == 4
    flip(folder / "weights")
    with pytest.raises(InputError):
        check_inputs(store, SPEC)


def test_the_users_cache_of_hashes_hides_no_flipped_bit(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = publish(store, BASE)
    long_ago = time.time() - 100
    os.utime(folder / "weights", (long_ago, long_ago))
    file_hash.file_sha256(folder / "weights")  # remembered by path, size and mtime
    flip(folder / "weights", keep_times=True)
    forget()
    assert damage(store, BASE).problem.startswith("weights has another content")


def test_before_a_run_sizes_are_compared_and_small_files_hashed(store, monkeypatch):
    monkeypatch.setattr(integrity, "SMALL", 20)
    folder = publish(store, BASE, weights=b"x" * 100, config=b"{...}")
    flip(folder / "weights")
    forget()
    assert set_aside_damaged(store, [BASE, TRAIN]) == {}
    flip(folder / "config")
    forget()
    assert set_aside_damaged(store, [BASE], "size") == {}
    told = set_aside_damaged(store, [BASE, TRAIN])
    assert list(told) == [BASE] and "config has another content" in told[BASE]


def test_what_was_made_after_the_damage_is_named_and_suspect_until_it_is_made_again(store):
    folder = publish(store, BASE)
    publish(store, TRAIN, [BASE])
    flip(folder / "weights")  # after TRAIN was published
    later = time.time() + 10
    os.utime(folder / "weights", (later, later))
    write_json(store.folder(TRAIN) / "manifest.json", store.manifest(TRAIN))
    manifest = {name: value for name, value in store.manifest(TRAIN).items() if name != "seal"}
    publish(store, EVALUATE, [TRAIN])
    changed = {**store.manifest(EVALUATE), "published": later + 5}
    del changed["seal"]
    write_json(store.folder(EVALUATE) / "manifest.json", changed)
    assert manifest["published"] < later
    forget()
    said = set_aside(store, damage(store, BASE))
    assert EVALUATE in said and TRAIN not in said.split("Made from it")[1] and "after the damage of" in said
    assert made_from(store, BASE) == [TRAIN, EVALUATE]


def test_where_the_time_of_the_damage_is_not_known_all_that_was_made_from_it_is_suspect(store):
    folder = publish(store, BASE)
    publish(store, TRAIN, [BASE])
    publish(store, EVALUATE, [TRAIN])
    flip(folder / "weights", keep_times=True)
    forget()
    said = set_aside(store, damage(store, BASE))
    assert f"{TRAIN}, {EVALUATE}" in said and "a time that may be after the damage" in said
    assert list(suspects(store)) == [TRAIN, EVALUATE]
    store.set_aside(TRAIN, "made from a damaged artifact")
    time.sleep(0.01)
    publish(store, TRAIN, [BASE])
    assert list(suspects(store)) == [EVALUATE]  # TRAIN was made again


def _repair(root, start, answers):
    store = Store(root)
    found = damage(store, BASE)
    start.wait()
    aside = store.set_aside(BASE, found.problem, found.inode)
    if aside is not None:
        publish(store, BASE)
    answers.put(aside is not None)


def test_of_several_processes_that_find_a_damage_one_sets_it_aside(store):
    folder = publish(store, BASE)
    os.truncate(folder / "weights", 1)
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(6), context.Queue()
    racers = [context.Process(target=_repair, args=(store.root, start, answers)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert sum(answers.get(timeout=5) for _ in racers) == 1
    assert damage(store, BASE) is None and store.done(BASE)
    assert len(store.quarantine()) == 1


def test_an_artifact_that_was_made_again_meanwhile_is_not_set_aside(store):
    folder = publish(store, BASE)
    os.truncate(folder / "weights", 1)
    found = damage(store, BASE)
    assert store.set_aside(BASE, found.problem, found.inode) is not None
    publish(store, BASE)
    assert store.set_aside(BASE, found.problem, found.inode) is None
    assert "another process has set it aside" in set_aside(store, found)
    assert store.done(BASE)


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_folder_without_manifest_makes_room_for_the_artifact(store, what):
    folder = publish(store, BASE)
    (folder / "manifest.json").unlink() if what == "missing" else os.truncate(folder / "manifest.json", 0)
    assert not store.done(BASE)
    publish(store, BASE, weights=b"again")
    assert (store.folder(BASE) / "weights").read_bytes() == b"again"
    (note,) = store.quarantine()
    assert (store.root / "quarantine" / note["aside"] / "weights").read_bytes() == b"0123456789"


def test_a_manifest_that_cannot_be_read_is_one_sentence(store):
    folder = publish(store, BASE)
    os.truncate(folder / "manifest.json", 30)
    with pytest.raises(DamagedError, match=rf"{BASE} in the store .* manifest.json is cut off.*run its grid's command"):
        store.manifest(BASE)


def test_a_manifest_without_seal_is_of_an_earlier_version_and_read(store):
    folder = publish(store, BASE)
    manifest = store.manifest(BASE)
    del manifest["seal"]
    write_json(folder / "manifest.json", manifest)
    assert store.manifest(BASE) == manifest and damage(store, BASE) is None


def test_a_file_for_tables_is_checked_before_it_is_read(store):
    folder = publish(store, EVALUATE, **{"scores.json": b"[1]", "items.parquet": b"PAR1"})
    assert json.loads(artifact_file(store, EVALUATE, "scores.json").read_text()) == [1]
    (folder / "scores.json").write_text("[2]")
    with pytest.raises(DamagedError, match=r"evaluate-cc.*scores.json has another content"):
        artifact_file(store, EVALUATE, "scores.json")
    os.truncate(folder / "items.parquet", 1)
    with pytest.raises(DamagedError, match=r"items.parquet has 1 bytes, not the 4"):
        artifact_file(store, EVALUATE, "items.parquet")
    with pytest.raises(DamagedError, match=r"states no other"):
        artifact_file(store, EVALUATE, "other")


def test_publishing_refuses_a_scratch_folder_that_was_removed_or_replaced(store):
    with pytest.raises(FileNotFoundError, match="was removed while"), store.scratch(BASE) as out:
        os.rename(out, store.root / "elsewhere")
        out.mkdir()  # as saving does
        (out / "weights").write_text("half")
        store.publish(BASE, out, {"facts": {}})
    with pytest.raises(FileNotFoundError, match="was removed while"), store.scratch(BASE) as out:
        out.rmdir()
        store.publish(BASE, out, {"facts": {}})
    assert not store.done(BASE)
