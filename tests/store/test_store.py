"""The store under races, crashes and bad folders."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.config.checks import SettingsError
from harness.store.store import Store, replacing, write_json

KEY = "train-" + "ab" * 16


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def publish(store, text="weights"):
    with store.scratch(KEY) as out:
        (out / "weights").write_text(text)
        return store.publish(KEY, out, {"facts": {}})


def test_an_artifact_is_done_when_its_manifest_is_in_place(store):
    assert not store.done(KEY)
    publish(store)
    assert store.done(KEY)
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # printf weights | sha256sum
    assert store.manifest(KEY)["files"]["weights"] == {"size": 7, "sha256": digest}
    assert store.published() == [KEY]


def test_the_loser_of_a_race_discards_and_the_first_artifact_stays(store):
    publish(store, "first")
    publish(store, "second")
    assert (store.folder(KEY) / "weights").read_text() == "first"
    assert list((store.root / "tmp").iterdir()) == []


def test_a_failing_maker_leaves_nothing_behind(store):
    with pytest.raises(RuntimeError), store.scratch(KEY) as out:
        (out / "half").write_text("x")
        raise RuntimeError
    assert not store.done(KEY) and list((store.root / "tmp").iterdir()) == []


def test_of_two_claims_one_is_refused_until_the_first_is_released(store):
    claim = store.claim(KEY)
    assert claim is not None and store.claimed(KEY)
    assert store.claim(KEY) is None
    claim.release()
    assert not store.claimed(KEY) and store.claim(KEY) is not None


def _hold_a_claim(root, ready):
    Store.open(root).claim(KEY)
    ready.set()
    time.sleep(60)


def test_the_claim_of_a_killed_process_is_taken_over_at_once(store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold_a_claim, args=(store.root, ready))
    holder.start()
    assert ready.wait(30)
    assert store.claim(KEY) is None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert not store.claimed(KEY)
    assert store.claim(KEY) is not None


def test_the_claim_of_another_machine_holds_until_its_heartbeat_is_stale(store):
    path = store.root / "claims" / KEY
    write_json(path, {"host": "elsewhere", "pid": 1, "process_started": 0.0, "nonce": "x", "started": 0.0})
    assert store.claim(KEY) is None
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    assert store.claim(KEY) is not None


def test_a_claim_that_was_taken_over_is_not_released_by_its_first_holder(store):
    first = store.claim(KEY)
    write_json(first.path, {**json.loads(first.path.read_text()), "nonce": "somebody else's"})
    first.release()
    assert first.path.exists()


def _publish_racing(root, start, texts):
    store = Store.open(root)
    start.wait()
    publish(store, texts)


def test_many_processes_publishing_one_key_leave_one_whole_artifact(store):
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    racers = [context.Process(target=_publish_racing, args=(store.root, start, str(n) * 1000)) for n in range(4)]
    for racer in racers:
        racer.start()
    start.set()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert len(set((store.folder(KEY) / "weights").read_text())) == 1
    assert list((store.root / "tmp").iterdir()) == []


def test_attempts_are_numbered_and_kept(store):
    first, second = store.new_attempt(KEY), store.new_attempt(KEY)
    write_json(first, {"outcome": "failed"})
    assert (first.stem, second.stem) == ("1", "2")
    assert store.attempts(KEY) == [{"outcome": "failed"}, {}]


def test_a_store_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"store=.*cannot be written.*store=<folder>"):
        Store.open(tmp_path / "file" / "store")


def test_a_read_only_store_is_refused_in_one_sentence():
    folder = Path(tempfile.mkdtemp())  # not tmp_path: its parents are closed to an ordinary user
    folder.chmod(0o555)
    code = f"""
import os
import shutil
from harness.store.store import Store
if os.geteuid() == 0: os.setuid(65534)  # root writes everywhere; nobody does not
Store.open({str(folder)!r})
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    folder.rmdir()
    assert answer.returncode == 1
    assert f"store='{folder}' cannot be run: the folder cannot be written (Permission denied)" in answer.stderr


def test_a_scratch_folder_that_was_replaced_is_not_published(store):
    # as where `gc` removed it and saving the model made it again: the log that was written first would be missing
    with pytest.raises(FileNotFoundError, match="removed while its artifact was made"), store.scratch(KEY) as out:
        (out / "log.jsonl").write_text("{}")
        shutil.rmtree(out)
        out.mkdir()
        (out / "weights").write_text("weights")
        store.publish(KEY, out, {"facts": {}})
    assert not store.done(KEY) and list((store.root / "tmp").iterdir()) == []


def test_a_claim_cut_off_while_it_is_written_holds_nothing(store, monkeypatch):
    def cut_off(*_):
        raise KeyboardInterrupt  # as a kill between writing and linking

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "link", cut_off)
        store.claim(KEY)
    (store.root / "tmp" / f"{KEY}.0123.lease").write_text('{"host":')  # what a kill leaves
    assert not store.claimed(KEY) and store.claim(KEY) is not None


def test_without_hard_links_one_claim_wins_all_the_same_and_opening_warns(store, monkeypatch, capsys):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    Store.open(store.root)
    assert "has no hard links" in capsys.readouterr().err
    assert store.claim(KEY) is not None and store.claim(KEY) is None
    assert list((store.root / "tmp").iterdir()) == []


def _claim_racing(root, start, queue):
    store = Store.open(root)
    start.wait()
    queue.put(store.claim(KEY) is not None)
    time.sleep(1)  # the claim of a process that has ended is taken over


def test_of_many_processes_claiming_one_key_one_gets_it(store):
    context = multiprocessing.get_context("spawn")
    start, queue = context.Event(), context.Queue()
    racers = [context.Process(target=_claim_racing, args=(store.root, start, queue)) for _ in range(4)]
    for racer in racers:
        racer.start()
    start.set()
    assert sorted(queue.get(timeout=60) for _ in racers) == [False, False, False, True]
    for racer in racers:
        racer.join(60)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one_and_nothing_beside(tmp_path):
    write_json(tmp_path / "page.json", {"old": True})
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "page.json") as unfinished:
        unfinished.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert json.loads((tmp_path / "page.json").read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]


def test_a_store_on_a_link_is_the_store_it_leads_to_and_a_dangling_link_is_refused(store, tmp_path):
    (tmp_path / "link").symlink_to(store.root)
    publish(Store.open(tmp_path / "link"))
    assert store.done(KEY)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    with pytest.raises(SettingsError, match=r"a link to .*absent, which is absent"):
        Store.open(tmp_path / "dangling")
