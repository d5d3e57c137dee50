"""The metrics a grid will have, its primary metric, and what is refused before anything is computed."""

import pytest

import harness.api as harness
from harness.config.checks import SettingsError
from harness.evals import eval_names, higher_is_better, load_eval, metrics_of_eval
from harness.evals.benchmarks import load_benchmark
from harness.plan.compose import compose, presets_folder
from harness.plan.metrics import earlier_default, full_name, grid_metrics, primary_metric, short_name
from harness.store.store import Store

PAPER = sorted(path.stem for path in (presets_folder() / "experiments" / "paper").glob("*.yaml"))


def of(*names: str, truth: bool = True) -> tuple[str, ...]:
    """Short names of the metrics of a grid with these evaluations."""
    corpus = {} if truth else {"corpus": "jsonl", "corpus__path": "rows.jsonl"}
    return tuple(map(short_name, grid_metrics(harness.grid(method="sft", evals__names=[list(names)], **corpus))))


def test_a_grid_knows_its_metrics_before_it_runs():
    assert of("heldout", "verified") == ("heldout.nll", "heldout.nll_truth", "verified.accuracy")
    assert of("heldout", "gsm8k") == ("heldout.nll", "heldout.nll_truth", "gsm8k.exact_match")
    both = ("gsm8k.exact_match", "gpqa.exact_match", "macro_average.rescaled", "macro_average.raw")
    assert of("gsm8k", "gpqa") == both
    # rows without a column of truths have no verified answers
    assert of("heldout", "verified", truth=False) == ("heldout.nll",)


def test_every_evaluation_states_the_metrics_that_its_summary_returns():
    from harness.evals import Item

    item = dict(source="a", prompt_hash="h", score=1.0, nll=2.0, nll_tokens=2, nll_truth=1.0, nll_truth_tokens=2)
    for name in eval_names():
        found = {score.metric for score in load_eval(name).summary([Item(name, "1", **item)])}
        assert found == set(metrics_of_eval(name))


def test_an_evaluation_that_states_no_metric_is_refused(tmp_path, monkeypatch):
    from harness.evals import corpus

    (tmp_path / "silent.py").write_text('"""An evaluation."""\n')
    monkeypatch.setattr(corpus, "__path__", [*corpus.__path__, str(tmp_path)])
    with pytest.raises(SettingsError, match=r"evals\.names='silent'.*METRICS"):
        metrics_of_eval("silent")


@pytest.mark.parametrize(
    ("names", "primary"),
    [
        (("heldout", "verified"), "verified.accuracy"),
        (("heldout", "verified", "gsm8k", "gpqa"), "verified.accuracy"),
        (("heldout", "gsm8k"), "gsm8k.exact_match"),
        (("heldout", "gsm8k", "bbh", "gpqa"), "macro_average.rescaled"),
        (("heldout",), "heldout.nll"),
    ],
)
def test_the_default_is_one_rule_and_never_the_first_of_several(names, primary):
    known = grid_metrics(harness.grid(method="sft", evals__names=[list(names)]))
    assert short_name(primary_metric(None, known)) == primary


def test_without_a_default_it_must_be_set():
    with pytest.raises(SettingsError, match=r"primary_metric=None.*must be set.*one\.accuracy, two\.accuracy"):
        primary_metric(None, ("heldout.nll", "one.accuracy", "two.accuracy"))


def test_a_metric_is_named_by_its_evaluation_with_the_metric_or_in_full():
    known = grid_metrics(harness.grid(method="sft", evals__names=[["heldout", "gsm8k", "gpqa"]]))
    full = f"gsm8k.{load_benchmark('gsm8k').column}"
    for given in ("gsm8k", "gsm8k.exact_match", full):
        assert primary_metric(given, known) == full
    assert primary_metric("macro_average.raw", known) == "macro_average.raw"
    with pytest.raises(SettingsError, match=r"names several metrics.*heldout\.nll, heldout\.nll_truth"):
        full_name("primary_metric", "heldout", known)
    listed = "heldout.nll, heldout.nll_truth, gsm8k.exact_match, gpqa.exact_match, macro_average.rescaled"
    with pytest.raises(SettingsError, match=rf"primary_metric='bbh' .*no metric of this grid, which has {listed}"):
        primary_metric("bbh", known)


def test_the_metrics_of_a_grid_are_those_that_all_its_cells_have():
    cells = harness.grid(method="sft", evals__names=[["heldout", "gsm8k", "gpqa"], ["heldout", "gsm8k"]])
    assert tuple(map(short_name, grid_metrics(cells))) == ("heldout.nll", "heldout.nll_truth", "gsm8k.exact_match")
    cells = harness.grid(method="sft", evals__names=[["heldout"], ["gsm8k"]])
    assert len(grid_metrics(cells)) == 3  # none in common


def test_claims_rested_on_the_first_accuracy_before_grids_named_one():
    assert earlier_default(("heldout.nll", "gsm8k.a@1", "bbh.a@1", "macro_average.rescaled")) == "bbh.a@1"
    assert earlier_default(("gsm8k.a@1", "verified.accuracy", "bbh.a@1")) == "verified.accuracy"
    assert earlier_default(("heldout.nll_truth", "heldout.nll")) == "heldout.nll"


@pytest.mark.parametrize("word", ["nll", "nll_truth", "loss"])
def test_losses_are_better_when_lower(word):
    assert not higher_is_better(word) and higher_is_better("accuracy")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"primary_metric": "bbh"}, r"primary_metric='bbh'.*verified\.accuracy"),
        (
            {"claims": [{"name": "x", "gain": {"method": "kd"}, "metric": "gsm8k"}]},
            r"claims\.x\.metric='gsm8k'.*verified\.accuracy",
        ),
    ],
)
def test_an_unknown_metric_is_refused_before_anything_is_made(tmp_path, settings, why):
    with pytest.raises(SettingsError, match=why):
        harness.run(harness.grid(method=["sft", "kd"]), store=str(tmp_path), **settings)
    assert not Store.at(tmp_path).published() and not list((tmp_path / "grids").glob("*"))


def test_grid_plan_prints_the_primary_metric_and_refuses_an_unknown_one(capsys, tmp_path):
    from harness.grid import main

    words = ["--store", str(tmp_path), "plan", "method=sft,kd"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "primary metric: verified.accuracy (others: heldout.nll, heldout.nll_truth)" in told
    assert main([*words, "primary_metric=gsm8k"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("harness: primary_metric='gsm8k'") and "verified.accuracy" in error


def test_a_grid_has_one_primary_metric():
    with pytest.raises(SettingsError, match="a grid has one primary metric"):
        compose(["method=sft", "primary_metric=verified.accuracy,heldout.nll"])


@pytest.mark.parametrize("slug", PAPER)
def test_an_experiment_at_the_papers_scale_names_its_primary_metric(slug):
    composed = compose([f"experiments={slug}", "scale=paper"])
    named = composed.settings.primary_metric
    assert named is not None and primary_metric(named, grid_metrics(composed.cells))
