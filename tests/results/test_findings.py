"""Claims: kept before the first cell, judged with intervals; synthetic grids whose truth is known."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as reference

from harness.config.checks import SettingsError
from harness.plan.claims import Claim, declare, declared, when_declared
from harness.plan.frozen import FrozenPlan
from harness.report.tables import claims_sheet
from harness.results.arms import Metric, by_arm
from harness.results.findings import judge
from harness.results.power import foresee
from harness.store.store import Store
from tests.invented_records import changed, frozen_cell, grid
from tests.invented_suite import COLUMNS, suite

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
    assert found.verdict == "undecided" and math.isnan(found.p)


def test_one_seed_leaves_every_claim_undecided_and_five_replicates_of_one_do_not():
    claims = [
        {"name": "gains", "gain": kd(0.03)},
        {"name": "loses", "gain": kd(0.03), "above": 0.5},
        {"name": "gone", "gain": kd(1.0), "within": 0.2},
        {"name": "not run", "gain": kd(0.5)},
    ]
    found = findings(*claims, seeds=1)
    assert [one.verdict for one in found] == ["undecided"] * 3 + ["no answer"]
    assert found[0].p_holm < 1e-6  # so the items alone would have said
    sheet = claims_sheet(found)
    assert [row[0].mark for row in sheet.rows] == [""] * 4 and "Undecided: one seed" in sheet.caption
    assert [one.verdict for one in findings(*claims[:2], seeds=1, worlds=(0, 1, 2, 3, 4))] == ["holds", "does not hold"]
    assert [one.verdict for one in findings(*claims[:2], seeds=1, worlds=(0, 1))] == ["undecided"] * 2


def test_that_a_gain_is_not_equal_to_sft_is_adjusted_like_every_other_claim():
    alone = {"name": "gone", "gain": kd(0.1), "within": 0.1}
    records, load_items = grid({"kd": {0.1: 0.13}, "logit_kd": {0.1: 0.0}}, seeds=3, size=480, noise=0.01)
    claims = [Claim.of(alone)] + [
        Claim.of({"name": str(n), "gain": {"method": "logit_kd", "data_frac": 0.1}}) for n in range(60)
    ]
    (one,) = judge(records, claims[:1], ACCURACY, load_items)
    one_of_many, *_ = judge(records, claims, ACCURACY, load_items)
    assert one.verdict == "does not hold" and one.p == one.p_holm < 0.05
    assert one_of_many.p == one.p and one_of_many.p_holm > 0.05 and one_of_many.verdict == "open"
    # two one-sided t tests against the margin, of which the larger estimate's side is doubled
    error = (one.high - one.estimate) / reference.t.ppf(0.975, 2)
    assert error > 0 and one.low > 0.1


def test_a_claim_about_a_teacher_is_about_all_of_its_seeds():
    records, load_items = grid({("kd", "weak"): {0.1: 0.08}}, seeds=3)
    second = [changed(one, teacher_seed=1, cell=one.cell + "-second") for one in records if one.method == "kd"]
    both = [*records, *second]
    assert {arm.teacher for arm in by_arm(both) if arm.method == "kd"} == {"weak[seed=0]", "weak[seed=1]"}
    claim = {"name": "gains", "gain": {"method": "kd", "teacher": "weak", "data_frac": 0.1}}
    (one,), (two,) = (judge(them, [Claim.of(claim)], ACCURACY, load_items) for them in (records, both))
    # the second teacher's students are copies, so their mean is the first's: no unit was added
    assert (two.verdict, two.draws, two.seeds) == (one.verdict, 1, 3)
    assert (two.estimate, two.low, two.high) == pytest.approx((one.estimate, one.low, one.high))
    named = {**claim, "gain": {**claim["gain"], "teacher": "weak[seed=1]"}}
    (third,) = judge(both, [Claim.of(named)], ACCURACY, load_items)
    assert third.estimate == pytest.approx(one.estimate) and third.verdict == one.verdict


def test_a_claim_that_fits_two_arms_which_a_setting_tells_apart_has_no_answer_and_says_why():
    records, load_items = grid({("kd", "weak"): {0.1: 0.08}}, seeds=2)
    records = [changed(one, settings={"evals": {"shots": 0}}) for one in records]
    others = [changed(one, settings={"evals": {"shots": 5}}, cell=one.cell + "-5") for one in records]
    (found,) = judge([*records, *others], [Claim.of({"name": "x", "gain": kd(0.1)})], ACCURACY, load_items)
    assert found.verdict == "no answer" and "weak, evals.shots=0; weak, evals.shots=5" in found.note
    assert found.note in claims_sheet([found]).rows[0][2].text


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
    # two seeds: the t test has one degree of freedom, and 80 % power needs a gain of 11.6 sd
    assert foresee(claims, grid_of(1, 2))[0] == (
        "gains: 2 seeds, sd 0.02: a gain of 0.231 or more is shown in four of five grids"
    )
    assert foresee(claims, grid_of(1, 1))[0].endswith("one unit shows nothing about another; add seeds or replicates")


def test_a_claim_is_judged_on_its_own_metric_and_says_on_which():
    found, load_items = suite({"kd": {1.0: (0.3, 0.0)}}, seeds=3, sizes=(60, 60))
    arm = {"method": "kd", "data_frac": 1.0}
    claims = [
        {"name": "whole", "gain": arm},
        {"name": "choices", "gain": arm, "metric": "gpqa"},
        {"name": "words", "gain": arm, "metric": "gsm8k.exact_match"},
        {"name": "raw", "gain": arm, "metric": "macro_average.raw"},
        {"name": "not scored", "gain": arm, "metric": "bbh"},
    ]
    whole, choices, words, raw, lost = judge(
        found, [Claim.of(one) for one in claims], Metric("macro_average", "rescaled"), load_items
    )
    assert (whole.metric, raw.metric) == ("macro_average rescaled", "macro_average raw")
    assert choices.metric == f"gpqa {COLUMNS['gpqa']}" and words.metric == f"gsm8k {COLUMNS['gsm8k']}"
    assert raw.estimate == pytest.approx((choices.estimate + words.estimate) / 2)
    assert whole.estimate == pytest.approx((choices.estimate / 0.75 + words.estimate) / 2)
    assert choices.verdict == "holds" and lost.verdict == "no answer"


def test_a_claim_on_a_loss_holds_where_the_loss_falls():
    records, load_items = grid({"kd": {0.03: 0.1}}, seeds=2)
    losses = [
        changed(
            one,
            scores=[{**s, "eval": "heldout", "metric": "nll", "score": 3 - s["score"]} for s in one.plain()["scores"]],
        )
        for one in records
    ]
    both = [
        changed(one, items={}, scores=[*one.plain()["scores"], *loss.plain()["scores"]])
        for one, loss in zip(records, losses, strict=True)
    ]
    claim = {"name": "likelier", "gain": kd(0.03), "metric": "heldout.nll"}
    (found,) = judge(both, [Claim.of(claim)], ACCURACY, load_items)
    assert found.estimate < 0 and found.metric == "heldout nll" and found.verdict in ("holds", "open")


def test_claims_without_a_metric_have_the_hash_they_always_had(tmp_path):
    given = {"name": "gains", "gain": kd(0.03)}
    # written out, as it was kept before a claim could name a metric
    kept = [{"name": "gains", "gain": kd(0.03), "says": "", "less": None, "above": 0.0, "within": None, "sd": 0.02}]
    before = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    known = ("heldout.nll", "verified.accuracy")
    for number, plan in enumerate((frozen("kd"), replace(frozen("kd"), primary_metric="verified.accuracy"))):
        store = Store.open(tmp_path / str(number))
        declare(store, plan, [given], known)
        entry = declared(store, "g")
        assert entry["sha256"] == before and entry["claims"] == kept
        assert entry.get("primary_metric") == plan.primary_metric
    declare(store, plan, [{**given, "metric": "heldout"}], known)
    assert declared(store, "g")["sha256"] != before and declared(store, "g")["claims"][0]["metric"] == "heldout"


def test_another_primary_metric_is_another_declaration(tmp_path, monkeypatch):
    store, known = Store.open(tmp_path), ("bbh.a@1", "gsm8k.a@1", "macro_average.rescaled")
    given = [{"name": "gains", "gain": kd(0.03)}]
    declare(store, replace(frozen("kd"), primary_metric="macro_average.rescaled"), given, known)
    first = declared(store, "g")
    monkeypatch.setattr(Store, "done", lambda self, key: True)
    declare(store, replace(frozen("kd"), primary_metric="macro_average.rescaled"), given, known)
    assert declared(store, "g") == first
    declare(store, replace(frozen("kd"), primary_metric="gsm8k.a@1"), given, known)
    second = declared(store, "g")
    assert second["sha256"] != first["sha256"] and second["primary_metric"] == "gsm8k.a@1"
    assert (first["cells_finished"], second["cells_finished"]) == (0, 1)  # chosen after the cell was seen


@pytest.mark.parametrize("metric", ["gsm8k", "verified.f1", "heldout", 3])
def test_a_claim_with_an_unknown_metric_is_refused_with_those_that_are_known(tmp_path, metric):
    claim = {"name": "x", "gain": kd(0.03), "metric": metric}
    known = ("heldout.nll", "heldout.nll_truth", "verified.accuracy")
    with pytest.raises(
        SettingsError, match=r"claims\.x\.metric=.*heldout\.nll, heldout\.nll_truth, verified\.accuracy"
    ):
        declare(Store.open(tmp_path), frozen("kd"), [claim], known)
    assert declared(Store.open(tmp_path), "g") is None
