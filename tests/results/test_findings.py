"""Claims: kept before the first cell, judged with intervals; synthetic grids whose truth is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from harness.config.checks import SettingsError
from harness.plan.claims import Claim, declare, declared, when_declared
from harness.plan.frozen import FrozenPlan
from harness.results.arms import Metric
from harness.results.findings import judge
from harness.results.power import foresee
from harness.store.store import Store
from tests.invented_records import changed, frozen_cell, grid

ACCURACY = Metric("verified", "accuracy")
GAINS = {("kd", "weak"): {0.03: 0.15, 0.1: 0.08, 1.0: 0.0}, ("logit_kd", "weak"): {0.03: 0.15, 0.1: 0.08, 1.0: 0.0}}


def kd(fraction: float, **more) -> dict:
    return {"method": "kd", "data_frac": fraction, **more}


def findings(*claims: dict, **changes):
    records, load_items = grid(GAINS, **{"seeds": 3, "size": 480, "noise": 0.003} | changes)
    return judge(records, [Claim.of(one) for one in claims], ACCURACY, load_items)


def test_a_claim_holds_does_not_hold_or_stays_open():
    found = findings(
        {"name": "gains", "gain": kd(0.03)},
        {"name": "shrinks", "gain": kd(0.03), "less": kd(1.0)},
        {"name": "grows", "gain": kd(1.0), "less": kd(0.03)},
        {"name": "by a lot", "gain": kd(0.03), "above": 0.3},
        {"name": "rivals differ", "gain": kd(0.1), "less": {"method": "logit_kd", "data_frac": 0.1}},
        {"name": "not run", "gain": kd(0.5)},
        worlds=(0, 1, 2, 3, 4),
    )
    assert [one.verdict for one in found] == ["holds", "holds", "does not hold", "does not hold", "open", "no answer"]
    gained = 0.15 / 0.7  # what `grid` makes of a gain of 0.15
    assert found[0].estimate == pytest.approx(gained, abs=0.03) and found[0].low < gained < found[0].high
    assert found[1].estimate == pytest.approx(-found[2].estimate)
    assert (found[0].draws, found[0].covers) == (5, "5 replicates")


def test_equal_is_shown_and_not_assumed():
    claims = [
        {"name": "gone", "gain": kd(1.0), "within": 0.05},
        {"name": "never there", "gain": kd(0.03), "within": 0.05},
    ]
    sure, refuted = findings(*claims, worlds=(0, 1, 2, 3, 4))
    assert (sure.verdict, refuted.verdict) == ("holds", "does not hold")
    (unsure, _) = findings(*claims, size=60, noise=0.05)
    assert unsure.verdict == "open"


def test_the_claims_of_a_grid_are_one_family():
    alone = findings({"name": "gains", "gain": kd(0.1)})[0]
    (first, *_) = findings({"name": "gains", "gain": kd(0.1)}, *({"name": str(n), "gain": kd(1.0)} for n in range(3)))
    assert first.p == alone.p and first.p_holm > alone.p_holm


def test_two_draws_say_that_they_speak_for_themselves_only():
    (found,) = findings({"name": "gains", "gain": kd(0.03)}, worlds=(0, 1))
    assert found.covers.endswith("for these 2 replicates only") and found.draws == 2


def test_a_difference_of_arms_is_paired_by_seed_and_item():
    """Both arms share the SFT cells and the items, so their difference is known better than either gain."""
    gained, other, difference = findings(
        {"name": "one", "gain": kd(0.03)},
        {"name": "other", "gain": {"method": "logit_kd", "data_frac": 0.03}},
        {"name": "both", "gain": kd(0.03), "less": {"method": "logit_kd", "data_frac": 0.03}},
    )
    assert difference.estimate == pytest.approx(gained.estimate - other.estimate)
    assert difference.high - difference.low < gained.high - gained.low + other.high - other.low


def test_the_interval_of_a_shrinking_gain_covers():
    """A smoke test of the whole way from records; benchmarks/interval_coverage.py repeats its like often enough."""
    truth, generator, hits, repetitions = 0.05, np.random.default_rng(2), 0, 40
    for _ in range(repetitions):
        curve = {0.03: 0.1 + truth + generator.normal(0, 0.004), 1.0: 0.1 + generator.normal(0, 0.004)}
        records, load_items = _normal_grid(curve, generator)
        (found,) = judge(records, [Claim.of({"name": "s", "gain": kd(0.03), "less": kd(1.0)})], ACCURACY, load_items)
        hits += found.low <= truth <= found.high
    assert hits >= 34  # 38 expected; a t interval that took ten seeds for replicates would cover about 25


def _normal_grid(curve, generator):
    """Five worlds with a gain of their own around `curve`, two seeds, sixty items."""
    from tests.invented_records import cell, items

    records, shelf = [], {}
    for world in range(5):
        for fraction, mean in curve.items():
            own = mean + generator.normal(0, 0.02)
            difficulty = generator.normal(0.5, 0.3, 60)
            for seed in (0, 1):
                for method, gained in (("sft", 0.0), ("kd", own)):
                    scores = difficulty + gained + generator.normal(0, 0.02) + generator.normal(0, 0.1, 60)
                    record = cell(method, fraction, seed, scores.tolist(), world_seed=world, teacher_seed=world)
                    shelf[record.items["verified"]] = items(scores.tolist(), world=world)
                    records.append(record)
    return records, shelf.__getitem__


def frozen(*methods: str) -> FrozenPlan:
    names = {"teacher": "weak", "student": "s", "corpus": "mini", "budget": "b"}
    cells = [
        frozen_cell(method=m, data_frac=f, evaluations={"e": f"{m}-{f}"}, **names) for m in methods for f in (0.03, 1.0)
    ]
    return FrozenPlan("g", {}, tuple(cells))


def test_claims_are_kept_with_a_hash_and_a_change_is_kept_beside(tmp_path):
    store = Store.open(tmp_path)
    first = [{"name": "gains", "gain": kd(0.03)}]
    declare(store, frozen("kd"), first)
    kept = declared(store, "g")
    assert (
        (kept["cells"], kept["cells_finished"]) == (1, 0)
        and len(kept["sha256"]) == 64
        and kept["claims"][0]["above"] == 0.0
    )
    declare(store, frozen("kd"), first)
    declare(store, frozen("kd"), [{"name": "gains", "gain": kd(1.0)}])
    history = json.loads((store.grid_folder("g") / "claims.json").read_text())
    assert [one["claims"][0]["gain"]["data_frac"] for one in history] == [0.03, 1.0]
    assert declared(store, "other") is None


def test_what_was_known_is_counted_in_the_arm_of_which_least_is_known(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    monkeypatch.setattr(Store, "done", lambda self, key: key in ("sft-0.03", "sft-1.0", "kd-1.0"))
    declare(store, frozen("sft", "kd"), [{"name": "scarce", "gain": kd(0.03), "less": kd(1.0)}])
    assert when_declared(declared(store, "g")) == "before any of the cells they are about (1) was finished"
    declare(store, frozen("sft", "kd"), [{"name": "shrinks", "gain": kd(1.0), "less": kd(0.03)}])
    assert declared(store, "g")["cells_finished"] == 0
    declare(store, frozen("sft", "kd"), [{"name": "scarce", "gain": kd(0.03)}, {"name": "all", "gain": kd(1.0)}])
    assert when_declared(declared(store, "g")) == "after 1 of the cells they are about (2) were finished"


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ({"name": "x", "gain": {"method": "skd", "data_frac": 0.03}}, "names no arm"),
        ({"name": "x", "gain": {"method": "kd"}}, "names 2 arms"),
        ({"name": "x", "gain": {"metod": "kd"}}, "metod.*allowed are method"),
        ({"name": "x"}, "needs `gain`"),
        ({"name": "x", "gain": kd(0.03), "below": 0}, "below"),
        ({"name": "x", "gain": kd(0.03), "within": -1}, "above 0"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_before_anything_runs(tmp_path, claim, why):
    with pytest.raises(SettingsError, match=why):
        declare(Store.open(tmp_path), frozen("kd"), [claim])


def test_without_a_standard_error_nothing_is_claimed():
    records, _ = grid(GAINS, seeds=1)
    bare = [changed(record, items={}) for record in records]
    (found,) = judge(bare, [Claim.of({"name": "gains", "gain": kd(0.03)})], ACCURACY)
    assert found.verdict == "open" and math.isnan(found.p)


def test_before_a_grid_is_run_it_is_told_what_it_can_show():
    claims = [{"name": "gains", "gain": kd(0.03)}, {"name": "gone", "gain": kd(1.0), "within": 0.02, "sd": 0.01}]

    def grid_of(draws: int, seeds: int) -> FrozenPlan:
        cells = frozen("kd").cells
        found = (replace(c, world_seed=d, seed=s) for c in cells for d in range(draws) for s in range(seeds))
        return FrozenPlan("g", {}, tuple(found))

    first, second = foresee(claims, grid_of(5, 2))
    assert first == "gains: 5 replicates, sd 0.02: a gain of 0.034 or more is shown in four of five grids"
    assert second.startswith("gone: 5 replicates, sd 0.01: if the true gain is 0, it is shown to lie within 0.02 in 9")
    assert (
        foresee(claims, grid_of(2, 3))[0].startswith("gains: 3 seeds") and "0.065" in foresee(claims, grid_of(2, 3))[0]
    )
    assert foresee(claims, grid_of(1, 1))[0].endswith("one unit shows nothing about another; add seeds or replicates")
