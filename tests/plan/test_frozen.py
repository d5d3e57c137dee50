"""Frozen plans: what is kept is read back the same, without the planner, and an older plan is refused."""

import json
import subprocess
import sys

import pytest

import harness.api as harness
from harness.config.checks import SettingsError
from harness.plan.cell_plan import Plan
from harness.plan.frozen import FrozenPlan, freeze, frozen_plan, keep_plan, targets_of
from harness.store.store import Store


def planned():
    return freeze(Plan.of(harness.grid(method=["sft", "logit_kd"], data_frac=[0.1, 1.0])), "g", track="none")


def test_a_plan_that_was_kept_is_read_as_it_was_frozen(tmp_path):
    store, frozen = Store.open(tmp_path), planned()
    text = (keep_plan(store, frozen) / "plan.json").read_text()
    read = frozen_plan(store, "g")
    assert read == frozen and FrozenPlan.of(json.loads(text)).plain() == json.loads(text)
    assert json.loads(text)["track"] == "none" and "tuned" not in json.loads(text)["cells"][0]
    assert read.addresses(targets_of(read.cells[0])) == {
        key: read.stages[key]["address"] for key in read.cells[0].evaluations.values()
    }


def test_a_reference_model_has_its_cells_corpus_seeds_and_settings():
    cell = next(one for one in planned().cells if one.method == "logit_kd")
    teacher = cell.as_reference("teacher")
    assert (teacher.role, teacher.method, teacher.teacher, teacher.student) == ("teacher", "teacher", "weak", "")
    assert teacher.fingerprint == cell.references["teacher"].fingerprint != cell.fingerprint
    assert (teacher.corpus, teacher.seed, teacher.settings) == (cell.corpus, cell.seed, cell.settings)
    assert (teacher.data_frac, teacher.overlaps) == (None, cell.overlaps)


def test_a_plan_that_lacks_a_key_is_refused_with_a_way_out(tmp_path):
    store = Store.open(tmp_path)
    path = keep_plan(store, planned()) / "plan.json"
    plan = json.loads(path.read_text())
    del plan["cells"][0]["evaluations"]
    path.write_text(json.dumps(plan))
    with pytest.raises(SettingsError, match=r"older version.*`evaluations`.*run its command again"):
        frozen_plan(store, "g")


def test_reading_a_plan_loads_neither_the_planner_nor_numpy():
    heavy = "{'numpy', 'pandas', 'torch', 'hydra', 'omegaconf', 'harness.plan.cell_plan'}"
    code = f"import sys, harness.plan.frozen; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
