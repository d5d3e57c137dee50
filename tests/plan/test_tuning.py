"""Tuning: equal trials on seeds of their own, open ends extended for every arm, and a grid run as chosen."""

import json
import math
from contextlib import nullcontext

import pytest

import harness.api as harness
from harness.config.cell import Settings
from harness.config.checks import SettingsError
from harness.config.machine import Launch
from harness.execution.runner import run_grid
from harness.grid import main as grid
from harness.methods import method_name
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.compose import Composed, compose
from harness.plan.frozen import frozen_plan
from harness.plan.trials import trial_plan, tune_grid
from harness.plan.tuning import Tune, plan_searches, search, trial_cell, tuned_cells, with_values
from harness.report.terminal import Finished
from harness.store.store import Store

RATES = {"budget.learning_rate": [1e-3, 2e-3, 4e-3]}


def cells_of(*arguments):
    return compose(["method=sft,logit_kd", *arguments]).cells


def bowl(best, calls=None):
    """A validation NLL that is lowest where every arm's learning rate is `best[method]`."""

    def run(cells):
        if calls is not None:
            calls.append(cells)
        return [abs(math.log(cell.budget.learning_rate / best[method_name(cell.method)])) for cell in cells]

    return run


def test_each_arm_takes_the_trial_with_the_lowest_validation_nll():
    cells = cells_of("data_frac=0.1,1.0")
    found = search(cells, Tune(axes=RATES), bowl({"sft": 2e-3, "logit_kd": 2e-3}))
    assert [one.best.values for one in found] == [{"budget.learning_rate": 2e-3}] * 4
    assert {len(one.trials) for one in found} == {3}
    assert {tuned.cell.budget.learning_rate for tuned in tuned_cells(cells, found)} == {2e-3}


def test_prompts_alone_have_no_validation_answers_to_tune_on_and_are_refused_before_anything_is_trained():
    cells = compose(["method=seq_kd", "corpus.answers=none"]).cells
    with pytest.raises(SettingsError, match=r"corpus\.answers='none'.*validation answers"):
        search(cells, Tune(axes=RATES), lambda _: pytest.fail("a trial was run"))


def test_one_optimum_at_an_end_gives_every_arm_one_more_trial():
    found = search(cells_of(), Tune(axes=RATES, rounds=1), bowl({"sft": 2e-3, "logit_kd": 9e-3}))
    sft, kd = sorted(found, key=lambda one: one.name, reverse=True)
    assert kd.trials[-1].values == {"budget.learning_rate": 8e-3}  # beyond the end, by the ratio of the last two
    assert sft.trials[-1].values["budget.learning_rate"] in (1.41e-3, 2.83e-3)  # between two that were tried
    assert len(sft.trials) == len(kd.trials) == 4


def test_the_axis_grows_until_the_optimum_is_inside_or_the_rounds_are_over():
    best = {"sft": 2e-3, "logit_kd": 3e-2}
    enough = search(cells_of(), Tune(axes=RATES, rounds=9), bowl(best))
    assert all(one.open_end() is None for one in enough)
    assert {len(one.trials) for one in enough} == {7}  # 8, 16, 32, 64: 32 is nearest and now inside
    short = search(cells_of(), Tune(axes=RATES, rounds=2), bowl(best))
    assert [one.open_end() is not None for one in short] == [False, True]


def test_an_end_that_the_setting_cannot_pass_is_no_open_end():
    tune = Tune(axes={"budget.weight_decay": [0.0, 0.1]}, rounds=5)
    found = search(cells_of(), tune, lambda cells: [cell.budget.weight_decay for cell in cells])
    assert [one.best.values for one in found] == [{"budget.weight_decay": 0.0}] * 2
    assert {len(one.trials) for one in found} == {2}


def test_whole_numbers_stay_whole():
    found = search(
        cells_of(),
        Tune(axes={"budget.batch_size": [8, 16]}, rounds=1),
        lambda cells: [-c.budget.batch_size for c in cells],
    )
    assert found[0].trials[-1].values == {"budget.batch_size": 32}
    assert isinstance(found[0].trials[-1].values["budget.batch_size"], int)


def test_trials_use_the_tuning_seeds_alone_and_average_over_them():
    calls = []
    tune = Tune(seeds=[100, 101], axes=RATES)
    cells = cells_of("seed=0,1", "data_seed=5")
    found = search(cells, tune, bowl({"sft": 2e-3, "logit_kd": 2e-3}, calls))
    assert len(found) == 2  # seeds are no arms
    seeds = {(cell.with_seeds().data_seed, cell.with_seeds().train_seed) for cell in calls[0]}
    assert seeds == {(100, 100), (101, 101)}
    assert len(calls[0]) == 2 * 3 * 2


def test_draws_of_the_world_share_the_trials_of_the_first():
    cells = cells_of("world_seed=0,1")
    calls = []
    found = search(cells, Tune(axes=RATES), bowl({"sft": 2e-3, "logit_kd": 2e-3}, calls))
    assert {cell.world_seed for cell in calls[0]} == {0}
    assert {tuned.cell.world_seed for tuned in tuned_cells(cells, found)} == {0, 1}


def test_a_trial_is_trained_and_never_scored_on_held_out_rows():
    cell = trial_cell(cells_of()[0], {"budget.learning_rate": 5e-3}, 100)
    plan = trial_plan(plan_cell(cell))
    assert {stage.kind for stage in Plan.union([plan]).stages} == {"mixture", "base", "subset", "train"}


def test_a_failed_trial_is_passed_over_with_its_reason_and_an_arm_of_failures_stops_the_grid():
    def run(cells):
        return ["failed: diverged" if cell.budget.learning_rate > 1e-3 else 1.0 for cell in cells]

    found = search(cells_of(), Tune(axes=RATES, rounds=0), run)
    assert [trial.reason for trial in found[0].trials] == ["", "failed: diverged", "failed: diverged"]
    assert found[0].best.values == {"budget.learning_rate": 1e-3}
    with pytest.raises(SettingsError, match="no trial of sft at data_frac=1 has a score: it burnt"):
        tuned_cells([], search(cells_of(), Tune(axes=RATES, rounds=0), lambda cells: ["it burnt"] * len(cells)))


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"seeds": [0, 100], "axes": RATES}, ["tune.seeds", "the grid reports seed 0"]),
        ({"seeds": []}, ["tune.seeds", "a seed"]),
        ({"rounds": -1}, ["tune.rounds", "at least 0"]),
        ({"trails": 3}, ["trails", "seeds, rounds, axes, arms"]),
        ({}, ["tune.axes", "nothing to choose"]),
        ({"axes": {"budget.learning_rate": 1e-3}}, ["budget.learning_rate", "a list of values"]),
        ({"axes": {"budget.larning_rate": [1, 2]}}, ["budget.larning_rate", "no such setting", "learning_rate"]),
        ({"axes": {"budget.learning_rate": [1e-3, -1]}}, ["budget.learning_rate=-1", "above 0"]),
        ({"axes": {"data_frac": [0.1, 1.0]}}, ["data_frac", "what is compared"]),
        ({"axes": RATES, "arms": {"kd": RATES}}, ["tune.arms='kd'", "logit_kd, sft"]),
        (
            {"axes": RATES, "arms": {"sft": {"method.label_smoothing": [0.0, 0.1]}}},
            ["logit_kd 3, sft 6", "same number of trials"],
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(tune, words):
    with pytest.raises(SettingsError) as refused:
        search(cells_of(), Tune.of(tune), lambda cells: pytest.fail("a cell was trained"))
    assert all(word in str(refused.value) for word in words)


def test_arms_may_have_axes_of_their_own_when_all_have_as_many_trials():
    tune = Tune(
        arms={"sft": {"method.label_smoothing": [0.0, 0.1]}, "logit_kd": {"method.divergence_temperature": [1.0, 2.0]}}
    )
    sft, kd = plan_searches(cells_of(), tune)
    assert [trial.values for trial in sft.trials] == [{"method.label_smoothing": 0.0}, {"method.label_smoothing": 0.1}]
    assert with_values(kd.cell, kd.trials[1].values).method.divergence_temperature == 2.0


def test_a_setting_is_swept_or_tuned_and_not_both():
    cells = cells_of("budget.learning_rate=0.001,0.002")
    found = search(cells, Tune(axes=RATES, rounds=0), bowl({"sft": 2e-3, "logit_kd": 2e-3}))
    with pytest.raises(SettingsError, match="sweeps a setting that is tuned too"):
        tuned_cells(cells, found)


def test_a_tuned_grid_from_trials_to_table(tmp_path, capsys):
    cells = harness.grid(
        method=["sft", "logit_kd"],
        data_frac=1.0,
        corpus__rows=240,
        corpus__heldout_per_source=4,
        student__init="random",
        teacher__init="random",
        teacher__lessons=[[]],
        budget__amount=4,
        budget__batch_size=8,
    )
    tune = {"axes": {"budget.learning_rate": [1e-4, 3e-3]}, "rounds": 1}
    settings = Settings(
        method=None, corpus=None, store=str(tmp_path / "store"), grid="g", launch=Launch(kind="inline"), tune=tune
    )
    store = Store(tmp_path / "store")
    finished = Finished.collect(store, run_grid(Composed(cells, settings)))
    told = json.loads((finished.folder / "tuning.json").read_text())
    assert told["trials_per_arm"] == 3
    for arm in told["arms"]:
        best = min(arm["trials"], key=lambda trial: trial["validation_nll"])
        assert best["values"] == arm["chosen"]
    by_method = {record.method: record for record in finished.records}
    assert set(by_method) >= {"sft", "logit_kd"}  # named as asked, whatever was chosen
    for arm, method in zip(told["arms"], ("sft", "logit_kd"), strict=True):
        record = by_method[method]
        assert record.settings["budget"]["learning_rate"] == arm["chosen"]["budget.learning_rate"]
        assert record.tuned == arm["chosen"]
    row = finished.summary.query("method == 'logit_kd' and metric == 'nll' and source == 'all'")
    assert row["gain"].notna().all()  # other learning rates, compared all the same
    assert "(tuned)" in row["note"].iloc[0]
    before = len(list(store.published()))
    assert grid(["--store", str(tmp_path / "store"), "status", "g-tuning"]) == 0
    assert "g-tuning: 6 of 6 cells done" in capsys.readouterr().out
    run_grid(Composed(cells, settings))
    assert len(list(store.published())) == before


def test_a_run_of_trials_that_is_stopped_early_keeps_the_finished_ones_in_the_plan(tmp_path):
    store, cells = Store.open(tmp_path / "store"), cells_of()
    tune, made = Tune(axes=RATES, rounds=2), []

    def make(plan, grid):
        made.append(len(plan.targets))
        if len(made) == 3:
            raise KeyboardInterrupt
        for key in plan.targets:
            if not store.done(key):
                with store.scratch(key) as out:
                    nll = 1.0 + 0.1 * len(store.published())
                    store.publish(key, out, {"facts": {"metrics": {"validation_nll": nll}}, "inputs": {}})
        return {}

    for key in ("first", "stopped"):
        with pytest.raises(KeyboardInterrupt) if key == "stopped" else nullcontext():
            made[:] = [] if key == "first" else [0, 0]  # the second run is stopped in its first round
            tune_grid(cells, tune, "g", store, make)
        plan = frozen_plan(store, "g-tuning")
        finished = {key for key in store.published() if key.startswith("train-")}
        assert finished <= plan.stages.keys() and len(plan.cells) >= len(finished) > 6
