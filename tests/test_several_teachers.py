"""A whole tiny grid with two teachers, in both combinations, from data to receipt."""

import json

import pandas as pd
import pytest

import harness.api as harness
from harness.config.machine import Launch
from harness.plan.frozen import frozen_plan
from harness.report.paragraph import methods_paragraph
from harness.results.contamination import teachers_of
from harness.store.store import Store
from tests.test_whole_cell import SMALL

SIZES = {name: value for name, value in SMALL.items() if not name.startswith("teacher")} | {"data_frac": 0.1}
FRESH = {"init": "random", "lessons": []}
TWO = [
    {"preset": "weak", "share": 0.5, **FRESH},
    {"preset": "strong", "share": 0.5, "size": "small", "init_seed": 7, **FRESH},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    given = {"teacher": "several", "teacher__members": [TWO]}
    cells = harness.grid(method=["sft", "kd", "seq_kd"], **given, **SIZES)
    cells += harness.grid(method="logit_kd", teacher__combine=["by_row", "mean"], **given, **SIZES)
    cells += harness.grid(method="logit_kd", signal__kind="top_k", signal__top_k=8, **given, **SIZES)
    store = tmp_path_factory.mktemp("several") / "store"
    return harness.run(cells, store=str(store), grid="two", launch=Launch(kind="inline"))


def students(finished):
    return {
        (one.method.partition("[")[0], one.teacher, "signal" in one.settings["method"]): one
        for one in finished.records
        if one.role == "student"
    }


def test_every_cell_is_scored_and_so_is_each_teacher(finished):
    assert {record.status for record in finished.records} == {"done"}
    assert {(one.role, one.teacher) for one in finished.records if one.role != "student"} == {
        ("base", None),
        ("teacher", "weak"),
        ("teacher", "strong"),
    }
    assert set(students(finished)) == {
        ("sft", None, False),
        ("kd", "weak+strong", False),
        ("seq_kd", "weak+strong", False),
        ("logit_kd", "weak+strong", False),
        ("logit_kd", "weak+strong[mean]", False),
        ("logit_kd", "weak+strong", True),
    }
    table = pd.read_parquet(finished.folder / "results.parquet")
    assert {"weak", "strong", "weak+strong", "weak+strong[mean]"} <= set(table["teacher"].dropna())


def test_every_member_of_the_mean_is_paid_for_and_one_member_of_each_row(finished):
    found = students(finished)
    by_row, mean = (found["logit_kd", name, False].cost for name in ("weak+strong", "weak+strong[mean]"))
    assert mean["teacher"].tokens == 2 * by_row["teacher"].tokens > 0
    assert mean["teacher"].flops > by_row["teacher"].flops > 0
    assert mean["train"].flops == by_row["train"].flops == found["sft", None, False].cost["train"].flops
    assert found["seq_kd", "weak+strong", False].cost["teacher"].flops > 0


def test_a_receipt_names_each_teacher_with_its_share_and_licence(finished):
    folders = sorted((finished.folder.parent.parent / "models" / "two").iterdir())
    receipts = [json.loads((folder / "receipt.json").read_text()) for folder in folders]
    (one,) = [r for r in receipts if r["method"] == "logit_kd" and (r["teacher"] or {}).get("combine") == "mean"]
    members = [(m["name"], m["share"], m["license"], m["lessons"]) for m in one["teacher"]["members"]]
    assert members == [("weak", 0.5, "Apache-2.0", 0), ("strong", 0.5, "Apache-2.0", 0)]
    assert {"sft", "base", "teacher weak", "teacher strong"} <= one["scores"][0]["against"].keys()
    card = (folders[receipts.index(one)] / "RECEIPT.md").read_text()
    assert "Teacher strong (0.5 of the mean): Apache-2.0; distillation allowed: yes." in card
    assert "gain over teacher weak" in card and "its teacher is the SFT student" not in card


def test_the_paragraph_says_who_taught_what(finished):
    text = methods_paragraph(finished.outcome)
    assert "weak+strong gave each row one teacher: weak (0.5) or strong (0.5), drawn by the row's id." in text
    assert "weak+strong[mean] is the mean of the probabilities of weak (0.5) and strong (0.5)" in text


def test_exposure_asks_what_any_of_the_teachers_had_seen(finished):
    store = Store.open(finished.folder.parent.parent)
    frozen = frozen_plan(store, "two")
    for cell in frozen.cells:
        made = teachers_of(frozen.stages, cell.train)
        wanted = () if cell.method == "sft" else ("weak", "strong")
        assert tuple(frozen.stages[key]["name"] for key in made) == wanted
    gains = harness.gains("two", store=str(store.root))
    assert len(gains)


def test_a_grid_with_one_of_them_reuses_labels_and_teacher(finished):
    root = finished.folder.parent.parent
    cells = harness.grid(method="seq_kd", teacher="weak", teacher__init="random", teacher__lessons=[[]], **SIZES)
    store, plan = Store.open(root), harness.plan(cells)
    left = [stage.kind for stage in plan.stages if not store.done(stage.key)]
    assert set(left) == {"train", "evaluate"}, "all that the teacher made is there"
