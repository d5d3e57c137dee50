"""Spending: FLOPs buy the steps their formulas say, for every kind of stage, and what they cannot buy is refused."""

import pytest

from harness.config.budget import Budget
from harness.config.checks import SettingsError
from harness.config.recipe import TrainingPhase
from harness.training.flop_budget import Sizes, off_budget, steps_for, visit_flops

SIZES = Sizes(student=100, teacher=400)
FLOPS = Budget(kind="flops", amount=1e6, batch_size=4)


@pytest.mark.parametrize(
    ("stage", "per_token"),
    [
        (TrainingPhase(), 600),
        (TrainingPhase(divergence="forward_kl"), 600 + 800),
        (TrainingPhase(sequences="student", student_share=0.5, divergence="jsd"), 600 + 800 + 100),
        (TrainingPhase(sequences="interleaved", divergence="forward_kl"), 600 + 800 + 200 + 800),
        (TrainingPhase(sequences="teacher"), 600),
    ],
)
def test_a_visit_costs_what_its_models_read_and_write(stage, per_token):
    assert visit_flops(stage, SIZES, row_tokens=10) == 10 * per_token


def test_a_cached_teacher_costs_nothing_while_training_and_frozen_weights_less():
    assert visit_flops(TrainingPhase(divergence="forward_kl"), Sizes(student=100), 1) == 600
    assert visit_flops(TrainingPhase(), Sizes(student=100, frozen=100), 1) == 400


def test_steps_are_what_the_share_buys_after_the_teachers_writing():
    assert steps_for(FLOPS, share=1.0, labels=0, visit=1000) == 250
    assert steps_for(FLOPS, share=0.5, labels=1e5, visit=1000) == 100


def test_a_budget_that_buys_no_step_is_refused_with_one_that_would():
    with pytest.raises(
        SettingsError, match=r"budget.amount=1000000.0 .* is less than one step .* at least 1e\+06|1.\de\+06"
    ):
        steps_for(FLOPS, share=1.0, labels=1e6, visit=1000)


def test_spending_within_a_tenth_is_no_news():
    assert off_budget(FLOPS, 0.5, 5.4e5) == "" and "5.6e+05" in off_budget(FLOPS, 0.5, 5.6e5)
