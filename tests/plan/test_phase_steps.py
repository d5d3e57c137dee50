"""Phase steps: a plan with phases of few optimizer steps is warned of in one line, or refused."""

import pytest

from harness.config.checks import SettingsError
from harness.execution.preflight import preflight
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.estimate import train_steps
from harness.plan.phase_steps import check_phase_steps, short_phases_warning

TULU = ["corpus=tulu3", "student=llama_1b", "teacher=llama33_70b", "budget=tulu3", "data_frac=0.01"]


def plan(*arguments):
    return Plan.of(compose(list(arguments)).cells)


def steps(found):
    return [train_steps(stage) for cell in found.cells for stage in cell.train]


def test_the_steps_of_a_phase_follow_from_training_rows_epochs_and_span():
    # 938,343 rows are not held out; 1 % without a tenth for validation are 8,445: 2 epochs of 128 are 132 steps
    assert steps(plan("method=sft", *TULU)) == [132]
    assert steps(plan("method=kd", *TULU)) == [26, 106]
    assert steps(plan("method=kd", *TULU, "budget.min_steps=250")) == [50, 200]
    # the 132 steps are shared 9 to 1; epochs of its own rows are 2 x 1,500 / 128 = 23
    assert steps(plan("method=two_stage", *TULU)) == [119, 13]
    assert steps(plan("method=two_stage", *TULU, "budget.epochs_of=phase")) == [23, 132]
    ratio = [*TULU, "budget.epochs_of=phase", "method=two_stage", "method.ratio=1,10"]
    assert [train_steps(cell.train[0]) for cell in plan(*ratio).cells] == [132, 1320]
    mixed = [*TULU, "budget.epochs_of=phase", "method=two_stage", "method.ratio=1", "method.order=mixed"]
    assert steps(plan(*mixed)) == [264]


def test_the_steps_of_a_flop_budget_are_what_its_flops_buy():
    asked = ["budget=flops", "budget.amount=1e11", "corpus.rows=1200"]
    (sft,), (kd,) = steps(plan("method=sft", *asked)), steps(plan("method=logit_kd", *asked))
    assert sft > kd > 0
    assert kd / sft == pytest.approx(6 * 349_824 / (6 * 349_824 + 2 * 802_560), rel=0.02)


def test_phases_of_few_steps_are_named_in_one_line():
    (line,) = short_phases_warning(plan("method=sft,kd,two_stage", *TULU))
    assert line.startswith("fewer than 50 optimizer steps in 2 training phases: method=kd student=llama_1b")
    assert "data_frac=0.01, phase 1 of 2 (26)" in line and "(13)" in line and "budget.min_steps" in line
    (many,) = short_phases_warning(plan("method=sft", "budget.amount=5", "data_frac=0.1,0.2,0.3,0.4,0.5,0.6"))
    assert "\n" not in many and "in 6 training phases" in many and " and 2 more. " in many


def test_a_plan_of_enough_steps_has_no_warning():
    assert not list(short_phases_warning(plan("method=sft,kd,self_kd")))


def test_a_phase_below_the_least_steps_is_refused_before_anything_is_computed():
    short = plan("method=sft,kd", *TULU, "budget.least_steps_per_phase=50")
    with pytest.raises(SettingsError, match=r"least_steps_per_phase=50.*phase 1 of 2 has 26 optimizer steps"):
        preflight(short)
    check_phase_steps(plan("method=sft,kd", *TULU, "budget.least_steps_per_phase=50", "budget.min_steps=250"))


def test_flops_that_buy_no_step_are_refused_before_anything_is_computed():
    with pytest.raises(SettingsError, match=r"^budget.amount=1000.0 .*buy not one optimizer step of method=sft"):
        check_phase_steps(plan("budget=flops", "budget.amount=1000", "corpus.rows=1200", "method=sft"))
