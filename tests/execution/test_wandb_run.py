"""Weights & Biases beside our own files: the real client, offline, and its files read back."""

import json
import os
import struct
import time

import pandas as pd
import pytest
from wandb.proto import wandb_internal_pb2

import harness.api as harness
from harness.config.cell import TRACKS, Settings
from harness.config.checks import SettingsError
from harness.config.machine import Launch, Machine
from harness.execution import wandb_run
from harness.execution.attempt import attempt
from harness.plan.frozen import frozen_plan
from harness.plan.graph import Stage
from harness.runtime import progress as track
from harness.store.store import Store
from tests.test_whole_cell import SMALL
from tests.training import test_checkpoints as checkpoints

KEY = "0123456789abcdef" * 2 + "01234567"
BLOCK, HEADER = 32768, 7


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory):
    """The client keeps its settings and caches here, knows a key, and is not at home."""
    root = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", str(root / name))
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("NETRC", str(root / "netrc"))
        yield


def read_run(path):
    """Records of a `.wandb` file: blocks as in LevelDB's log, each record of one of the client's messages."""
    data, place, message, found = path.read_bytes(), HEADER, b"", []
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if place + HEADER + length > len(data):
            break  # its last record is still being written
        message += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(message))
            message = b""
    return found


def history_of(records):
    """Rows of a run's history as plain values, without what the client adds."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                place = row
                for name in outer:
                    place = place.setdefault(name, {})
                place[last] = json.loads(item.value_json)
            step = row.get("_step", record.history.step.num)
            rows.append({"_step": step, **{k: v for k, v in row.items() if not k.startswith("_")}})
    return rows


def about(records):
    """A run's own record, and its config as plain values."""
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    return run, {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}


def is_whole(records):
    return any(record.WhichOneof("record_type") == "exit" for record in records)


def runs_in(root):
    """Records of every run, each read when it is whole: wandb's own process may write them after the run was closed."""
    found = {}
    for path in root.glob("wandb/offline-run-*/run-*.wandb"):
        deadline = time.monotonic() + 30
        while not is_whole(records := read_run(path)):
            assert time.monotonic() < deadline, path
            time.sleep(0.05)
        found[about(records)[0].run_id] = records
    return found


def make(settings, inputs, out, machine):
    """Trains nothing and writes a log of three lines."""
    with (out / "log.jsonl").open("w") as file:
        for step in (1, 2, 3):
            line = {"step": step, "loss": 1 / step}
            file.write(json.dumps(line) + "\n")
            track.log(line)
    return {"cost": {}}


def attempted(tmp_path, to, name="one"):
    store, stage = Store.open(tmp_path / "store"), Stage("train", "one", {"number": name})
    outcome = attempt(
        store, stage.spec() | wandb_run.tracking(to, "g"), "tests.execution.test_wandb_run:make", Machine()
    )
    assert outcome.status == "done"
    assert len((store.folder(stage.key) / "log.jsonl").read_text().splitlines()) == 3
    return store, store.manifest(stage.key)["facts"].get("warnings", [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid") / "store"
    cells = harness.grid(method=["sft", "logit_kd"], **{**SMALL, "data_frac": 0.1, "corpus__heldout_per_source": 2})
    claims = [{"name": "gains", "gain": {"method": "logit_kd"}}]
    asked = {"grid": "small", "launch": Launch(kind="inline"), "track": "wandb", "claims": claims}
    return harness.run(cells, store=str(root), **asked), Store(root)


def test_every_trained_stage_is_a_run_with_the_stages_key_its_whole_log_and_what_people_sort_by(finished):
    done, store = finished
    runs = runs_in(store.root)
    students = {record.method: record.artifact for record in done.records if record.role == "student"}
    assert len(runs) == 3 and done.warnings == []
    for method, folder in students.items():
        key = folder.rpartition("/")[2]
        run, config = about(runs[key])
        assert (run.project, run.run_group, run.job_type) == ("harness", "small", "train")
        assert run.display_name == store.manifest(key)["address"]
        assert (config["method"], config["data_frac"], config["seed"]) == (method, 0.1, 0)
        assert config["budget"]["amount"] == 5 and config["student"]
        assert ("teacher" in config) == (method == "logit_kd")
        log = [json.loads(line) for line in (store.folder(key) / "log.jsonl").read_text().splitlines()]
        rows = history_of(runs[key])
        assert [row.pop("_step") for row in rows] == [1, 2, 3, 4, 5] and rows == log


def test_a_finished_grid_is_one_run_with_its_tables_verdict_claims_and_addresses(finished):
    done, store = finished
    for _ in range(2):  # collected again, it is the same run
        (key,) = [key for key in runs_in(store.root) if key.startswith("grid-")]
        harness.collect(store, frozen_plan(store, "small"))
    records = runs_in(store.root)[key]
    assert about(records)[0].display_name == "small"
    (row,) = history_of(records)
    assert row["verdict"] == done.verdict
    (folder,) = store.root.glob(f"wandb/offline-run-*-{key}")
    assert set(row) - {"_step", "verdict"} == {"summary", "results", "claims", "artifacts"}
    tables = {}
    for name in ("summary", "claims", "artifacts"):
        table = json.loads((folder / "files" / row[name]["path"]).read_text())
        tables[name] = pd.DataFrame(table["data"], columns=table["columns"])
    assert tables["summary"]["score"].tolist() == pytest.approx(done.summary["score"].tolist(), nan_ok=True)
    assert tables["claims"][["name", "verdict"]].to_numpy().tolist() == [["gains", "undecided"]]
    models = {record.artifact.rpartition("/")[2] for record in done.records}
    assert set(tables["artifacts"]["model"]) == models and all(map(store.done, models))


def test_neither_the_key_nor_what_wandb_would_gather_by_itself_is_on_disk(finished):
    _, store = finished
    files = [path for path in store.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.suffix == ".wandb" for path in files) == 3
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    names = {path.name for path in files}
    assert not names & {"requirements.txt", "wandb-metadata.json", "output.log", "conda-environment.yaml", "diff.patch"}
    for path in files:
        if path.suffix == ".wandb":
            records = read_run(path)
            run, _ = about(records)
            assert (run.host, run.HasField("git")) == ("", False)
            assert {"stats", "environment"}.isdisjoint(one.WhichOneof("record_type") for one in records)
            assert all(word.encode() not in path.read_bytes() for word in (os.getcwd(), os.environ["PATH"]))


def test_a_stage_that_was_stopped_goes_on_with_one_curve_and_no_step_twice(tmp_path, monkeypatch):
    store, stage = Store.open(tmp_path / "store"), Stage("train", "sft-1-s0", {"seed": 0})
    for name, steps in (("first", 2), ("second", 1), ("last", None)):
        asked = stage.spec() | wandb_run.tracking("wandb", "g")
        with wandb_run.curve(store, asked) as run, track.listen(lambda progress: None, run.log):
            result = checkpoints.attempt(tmp_path, monkeypatch, name, steps=steps)
        assert run.problem is None
    (records,) = runs_in(store.root).values()
    rows = [{k: v for k, v in row.items() if k not in ("_step", "seconds")} for row in history_of(records)]
    assert [row["step"] for row in rows] == list(range(1, checkpoints.STEPS + 1)) and rows == result[2]


def test_what_wandb_cannot_do_is_a_warning_of_a_stage_that_is_done(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "wandb").write_text("no folder")
    _, (warning,) = attempted(tmp_path, "wandb")
    assert "not all of it is in wandb: FileExistsError" in warning
    monkeypatch.setattr(wandb_run, "LONGEST_WAIT_SECONDS", 0.5)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / "store" / "wandb").unlink()
    _, (warning,) = attempted(tmp_path, "wandb_online", "unreachable")
    assert "not all of it is in wandb" in warning and KEY not in warning
    monkeypatch.delenv("WANDB_API_KEY")
    _, (warning,) = attempted(tmp_path, "wandb_online", "unknown")
    assert "not logged in" in warning
    _, warnings = attempted(tmp_path, "wandb", "offline")
    assert warnings == []


def test_a_table_that_wandb_would_cut_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_run, "TABLE_ROWS", 2)
    (warning,) = wandb_run.log_grid(tmp_path, "wandb", "g", {"results": pd.DataFrame({"score": [1.0, None, 3.0]})})
    assert warning == "wandb has the first 2 of 3 rows of results; the store has them all"


def test_nothing_is_tracked_unless_asked_for(tmp_path):
    store, warnings = attempted(tmp_path, "none")
    assert warnings == [] and not (store.root / "wandb").exists()
    assert set(wandb_run.MODES) == set(TRACKS) - {"none"}
    with pytest.raises(SettingsError, match="track='tensorboard'"):
        Settings(method=None, corpus=None, track="tensorboard")
