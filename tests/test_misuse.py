"""harness.api and the verbs, misused: one sentence each, no library's frames, nothing outside the store."""

import os
import signal
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest

import harness.api as harness
from harness import grid
from harness.config.checks import SettingsError
from harness.plan.compose import compose
from harness.plan.frozen import freeze, keep_plan
from harness.report.__main__ import main as report
from harness.store.store import Store


def fractions():
    yield from (0.1, 0.3)


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 0.3],
        (0.1, 0.3),
        {0.3, 0.1},
        fractions(),
        np.array([0.1, 0.3]),
        [np.float64(0.1), np.float32(0.3)],
        np.linspace(0.1, 0.3, 2),
        dict.fromkeys([0.1, 0.3]).keys(),
    ],
)
def test_any_iterable_sweeps(values):
    assert [round(cell.data_frac, 6) for cell in harness.grid(data_frac=values)] == [0.1, 0.3]


def test_numbers_of_numpy_are_numbers():
    (cell,) = harness.grid(data_frac=np.float64(0.1), seed=np.int64(3), budget__batch_size=np.int32(8))
    assert (cell.data_frac, cell.seed, cell.budget.batch_size) == (0.1, 3, 8)
    assert type(cell.seed) is int and type(cell.budget.batch_size) is int
    assert [cell.seed for cell in harness.grid(seed=range(3))] == [0, 1, 2]
    assert [cell.evals.names for cell in harness.grid(evals__names=[("heldout",)])] == [["heldout"]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data_frac": 2}, ["data_frac=2", "at most 1"]),
        ({"data_frac": True}, ["data_frac=True"]),
        ({"data_frac": []}, ["data_frac=[]", "no value"]),
        ({"data_frac": object()}, ["data_frac"]),
        ({"method": "magic"}, ["method='magic'", "sft"]),
        ({"method": None}, ["method=None", "sft"]),
        ({"method": [["sft", "kd"]]}, ["method=['sft', 'kd']", "one preset"]),
        ({"foo": 1}, ["foo is not a setting", "student"]),
        ({"budget__amuont": 1}, ["budget.amuont is not a setting", "amount"]),
        ({"budget__amount": [1, 2], "budget.amount": [3]}, ["budget.amount=[3]", "given twice"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"seed": range(10**6)}, ["most_cells=20000", "1,000,000 cells"]),
        ({"store": ["a", "b"]}, ["store=['a', 'b']", "cannot be swept"]),
        ({"retry": [True, False]}, ["retry=[True, False]", "cannot be swept"]),
        ({"evals__names": ["heldout", "verified"]}, ["evals.names='heldout,verified'", "takes a list"]),
        ({"student__name": "../x"}, ["student.name='../x'", "letters"]),
    ],
)
def test_misuse_of_grid_is_one_sentence_without_a_librarys_frames(settings, words):
    with pytest.raises(SettingsError) as refused:
        harness.grid(**settings)
    said = str(refused.value)
    assert all(word in said for word in words) and "\n" not in said
    printed = "".join(traceback.format_exception(refused.value))
    assert "hydra/" not in printed and "omegaconf/" not in printed and "During handling" not in printed


def test_what_a_grid_leaves_out_is_a_warning():
    with pytest.warns(UserWarning, match="method repeats a value in its sweep"):
        assert len(harness.grid(method=["kd", "kd"])) == 1


@pytest.mark.parametrize(
    ("cells", "settings", "words"),
    [
        (None, {"grid": "../evil2"}, ["grid='../evil2'", "letters"]),
        (None, {"grid": ""}, ["grid=''", "letters"]),
        (None, {"grid": "a\nb"}, ["grid='a\\nb'", "letters"]),
        (None, {"slurm": "dev"}, ["slurm='dev'", "python -m harness.run"]),
        (None, {"launch": "inline"}, ["launch='inline'", "Launch"]),
        (None, {"machine": {"threads": 1}}, ["machine=", "Machine"]),
        (None, {"retry": "yes"}, ["retry='yes'", "True or False"]),
        (None, {"store": ""}, ["store=''", "path of a folder"]),
        (None, {"colour": "red"}, ["colour='red'"]),
        ([], {}, ["cells=()", "made of cells"]),
        (["sft"], {}, ["cells='sft'", "made of cells"]),
        (3, {}, ["cells=3", "made of cells"]),
    ],
)
def test_misuse_of_run_is_one_sentence_and_nothing_is_written(cells, settings, words, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SettingsError) as refused:
        harness.run(harness.grid() if cells is None else cells, **{"store": "store", **settings})
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one planned grid."""
    from harness.plan.cell_plan import Plan

    store = Store.open(tmp_path_factory.mktemp("misuse") / "store")
    keep_plan(store, freeze(Plan.of(compose(["method=sft,logit_kd"]).cells), "g"))
    return store


@pytest.mark.parametrize("name", ["../evil", "..", "", "a/b", "--yes", "a\nb", "<img onerror>", "x" * 300, "/evil"])
@pytest.mark.parametrize("verb", ["status", "watch", "retry", "cancel", "cost", "results"])
def test_a_verb_takes_one_safe_name(store, verb, name, capsys):
    if verb == "status" and not name:
        return  # no name: all grids
    given = ["--store", str(store.root), verb, "--", name]
    assert grid.main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith("harness: grid=") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["watch", "g", "--every", "-1"], ["--every=-1.0", "above 0"]),
        (["watch", "g", "--every", "0"], ["--every=0.0", "above 0"]),
        (["watch", "g", "--every", "nan"], ["--every=nan", "above 0"]),
        (["results", "nonesuch"], ["grid='nonesuch'", "has g"]),
        (["explain", "zzzz"], ["address='zzzz'", "no stage matches"]),
        (["explain", ""], ["address=''", "no stage matches"]),
    ],
)
def test_a_verb_that_cannot_be_meant_is_one_sentence(store, arguments, words, capsys):
    assert grid.main(["--store", str(store.root), *arguments]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and said.count("\n") == 1


@pytest.mark.parametrize("verb", [["gc"], ["gc", "--yes"], ["status"], ["explain", "x"]])
def test_a_folder_that_is_no_store_is_refused(tmp_path, verb, capsys):
    (tmp_path / "notes.txt").write_text("keep me")
    assert grid.main(["--store", str(tmp_path), *verb]) == 2
    assert "this folder is no store" in capsys.readouterr().err
    assert grid.main(["--store", "", *verb]) == 2
    assert "path of a folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_a_damaged_plan_is_named_and_hides_no_other_grid(store, capsys):
    damaged = store.root / "grids" / "broken" / "plan.json"
    damaged.parent.mkdir()
    damaged.write_text('{"cells": [')
    try:
        assert grid.main(["--store", str(store.root), "status"]) == 0
        said = capsys.readouterr().out
        assert (
            "g: 0 of 2 cells done" in said and "broken: " in said and "plan.json cannot be read: it is cut off" in said
        )
        assert grid.main(["--store", str(store.root), "status", "broken"]) == 2
        assert grid.main(["--store", str(store.root), "gc", "--yes"]) == 0
        assert "no artifact is deleted, since that grid may need any of them" in capsys.readouterr().err
    finally:
        damaged.unlink()
        damaged.parent.rmdir()


def test_a_cell_and_the_folder_of_its_model_name_its_stage(store, capsys):
    from harness.plan.frozen import frozen_plan

    sft, kd = sorted(frozen_plan(store, "g").cells, key=lambda cell: cell.method, reverse=True)
    names = [f"sft-1-s0-{sft.fingerprint[:8]}", f"logit_kd-weak-1-s0-{kd.fingerprint[:8]}/"]
    assert grid.main(["--store", str(store.root), "explain", *names]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("train-sft") and " -> train-logit_kd" in first
    assert 'settings.stage.divergence: "cross_entropy" -> "forward_kl"' in rest


def test_a_report_that_cannot_be_written_or_read_is_one_sentence(store, capsys, monkeypatch):
    assert report(["../evil", "--store", str(store.root)]) == 2
    assert "letters, digits" in capsys.readouterr().err
    monkeypatch.setattr("harness.report.__main__.write_report", lambda *a, **k: os.mkdir("/proc/x"))
    assert report(["g", "--store", str(store.root), "--out", "/proc/x"]) == 2
    said = capsys.readouterr().err
    assert "--out='/proc/x' cannot be run" in said and said.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after", ["at once", "while it runs"])
def test_a_signal_ends_the_command_with_one_sentence(number, code, after, tmp_path):
    command = [sys.executable, "-m", "harness.run", "student=mini_tiny", f"store={tmp_path}/s", "launch.kind=inline"]
    process = subprocess.Popen([*command, "budget.amount=100000"], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    if after == "at once":
        # the handlers are there once the first module of the package is; the libraries take longer
        end = time.monotonic() + 30
        caught = 0
        while not caught & 1 << (signal.SIGTERM - 1) and time.monotonic() < end and process.poll() is None:
            with open(f"/proc/{process.pid}/status") as status:
                caught = int(next(line for line in status if line.startswith("SigCgt")).split()[1], 16)
            time.sleep(0.002)
    else:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("s/claims/*")) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "harness: stopped; what is finished is kept" in said and "Traceback" not in said
