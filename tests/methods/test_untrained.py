"""A cell that trains nothing is scored, once, as its own base."""

import pytest

from harness import api
from harness.config.checks import SettingsError
from harness.config.machine import Launch
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.tuning import Tune, plan_searches
from harness.stand_ins.benchmark_items import write_items
from tests.doubles import save_tiny


def test_its_evaluations_are_those_of_its_base():
    plan = Plan.of(compose(["method=untrained", "data_frac=0.1"]).cells)
    (cell,) = plan.cells
    own, base = ([stage.key for stage in stages.values()] for stages in (cell.evaluations, cell.references["base"]))
    assert own == base and not cell.train
    assert {stage.kind for stage in plan.stages} == {"mixture", "base", "evaluate", "measure"}


def test_a_model_is_scored_on_a_benchmark_without_a_study(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    save_tiny(tmp_path / "model")
    words = ["method=untrained", "student=hf", f"student.path={tmp_path / 'model'}", "evals.names=[pubmedqa]"]
    cells = compose([*words, f"evals.data_dir={write_items('pubmedqa', tmp_path / 'data')}"]).cells
    done = api.run(cells, store=str(tmp_path / "store"), grid="scored", launch=Launch(kind="inline"))
    assert [record.status for record in done.records] == ["done", "done"]
    scores = [one for record in done.records for one in record.scores if one.source == "all"]
    assert scores[0] == scores[1] and scores[0].items == 3 and scores[0].metric.startswith("acc@lm-eval-")


def test_there_is_nothing_to_tune():
    cells = compose(["method=sft,untrained", "data_frac=0.1"]).cells
    with pytest.raises(SettingsError, match=r"method='untrained'.*nothing to tune"):
        plan_searches(cells, Tune(axes={"budget.learning_rate": [1e-3, 1e-4]}))


def test_a_grid_without_a_single_score_ends_in_a_table_of_reasons(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    save_tiny(tmp_path / "model")
    words = ["method=untrained", "student=hf", f"student.path={tmp_path / 'model'}", "evals.names=[pubmedqa]"]
    cells = compose([*words, f"evals.data_dir={write_items('pubmedqa', tmp_path / 'data')}"]).cells
    monkeypatch.setattr("harness.evals.lm_evaluation.tasks.LM_EVAL", "9")
    done = api.run(cells, store=str(tmp_path / "store"), grid="scored", launch=Launch(kind="inline"))
    assert [record.status for record in done.records] == ["failed", "failed"]
    assert all("written for lm-eval 9" in record.reason for record in done.records)
