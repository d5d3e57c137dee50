"""Outcomes: what is exported is read back to the same tables, without weights, texts or rows."""

import json

import pandas as pd
import pytest

import harness.api as harness
from harness.config.checks import SettingsError
from harness.results.arms import Metric
from harness.results.decision import advice, decisions
from harness.results.outcome import Outcome
from harness.results.paired_gains import crossovers
from harness.results.table import select
from tests.invented_records import changed, grid
from tests.invented_suite import COLUMNS, NAMES, suite

GAINS = {("kd", "weak"): {0.03: 0.15, 0.1: 0.08, 1.0: 0.0}}
CLAIMS = {
    "sha256": "0" * 64,
    "declared": "2026-01-01T00:00:00+00:00",
    "cells": 2,
    "cells_finished": 0,
    "claims": [{"name": "gains", "gain": {"method": "kd", "data_frac": 0.03}}],
}


@pytest.fixture(scope="module")
def outcome():
    records, load_items = grid(GAINS, seeds=2, worlds=(0, 1))
    return Outcome("g", records, CLAIMS, lambda path: load_items(path).assign(prediction="a secret text"))


def test_a_folder_that_was_exported_gives_the_same_tables_verdict_and_findings(outcome, tmp_path):
    read = harness.read(str(outcome.export(tmp_path / "shared")))
    pd.testing.assert_frame_equal(read.summary, outcome.summary)
    assert (read.verdict, read.grid) == (outcome.verdict, "g")
    assert [(f.verdict, f.estimate, f.low) for f in read.findings] == [
        (f.verdict, f.estimate, f.low) for f in outcome.findings
    ]
    assert len(read.results) == len(outcome.results)


def test_an_export_is_small_and_holds_no_text(outcome, tmp_path):
    folder = outcome.export(tmp_path / "shared")
    assert sorted(path.name for path in folder.iterdir()) == ["claims.json", "items.parquet", "records.jsonl"]
    assert b"a secret text" not in (folder / "items.parquet").read_bytes()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000
    assert all(json.loads(line)["artifact"] is None for line in (folder / "records.jsonl").open())


def test_an_export_may_hold_one_evaluation_alone(outcome, tmp_path):
    (name,) = {name for record in outcome.records for name in record.items}
    read = Outcome.read(outcome.export(tmp_path / "one", evals=[name]))
    pd.testing.assert_frame_equal(read.summary, outcome.summary)
    none = Outcome.read(outcome.export(tmp_path / "none", evals=["gsm8k"]))
    assert not any(record.scores or record.items for record in none.records) and none.metric is None


def test_a_grid_without_claims_has_no_findings_and_one_without_scores_no_metric(tmp_path):
    records, load_items = grid(GAINS, seeds=1)
    assert Outcome("g", records, None, load_items).findings == []
    bare = [changed(record, scores=[], items={}, status="missing") for record in records]
    read = Outcome.read(Outcome("g", bare, CLAIMS).export(tmp_path))
    assert read.metric is None and read.findings == [] and read.verdict.startswith("No verdict")


def test_a_folder_that_holds_no_export_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="lacks records"):
        Outcome.read(tmp_path)


def of_suite(primary: str | None = "macro_average.rescaled", **more):
    found, load_items = suite({"kd": {0.1: (0.2, 0.1), 1.0: (0.0, 0.0)}}, seeds=2)
    return Outcome("g", found, load_items=load_items, primary=Metric.named(primary) if primary else None, **more)


def test_the_primary_metric_is_that_of_verdict_crossovers_decision_and_claims():
    claims = {**CLAIMS, "claims": [{"name": "gains", "gain": {"method": "kd", "data_frac": 0.1}}]}
    for primary in ("macro_average.rescaled", "macro_average.raw", f"gsm8k.{COLUMNS['gsm8k']}"):
        outcome = of_suite(primary, declaration=claims)
        label = Metric.named(primary).label
        assert outcome.metric.label == label and f"({label}), kd (weak)" in outcome.verdict
        (one, *_), (finding,) = decisions(outcome.summary, outcome.metric), outcome.findings
        assert one.metric == finding.metric == label
        row = select(outcome.summary, outcome.metric).set_index(["method", "data_frac"]).loc[("kd", 0.1)]
        assert one.gain == finding.estimate == pytest.approx(row["gain"])
        own = crossovers(outcome.records, Metric.named(primary), outcome.load_items)
        assert len(own) == 1 and repr(outcome.crossovers) == repr(own)
        assert advice([one])[0].startswith(f"small on mini, 300 steps x 32 rows, teacher weak, by {label}: ")


def test_records_without_a_primary_metric_are_reported_as_they_were():
    old = [
        changed(one, scores=[s for s in one.plain()["scores"] if s["eval"] != "macro_average"])
        for one in of_suite().records
    ]
    outcome = Outcome("g", old, None, of_suite().load_items)
    assert outcome.metric == Metric("gpqa", COLUMNS["gpqa"]) and not (outcome.summary["eval"] == "macro_average").any()


def test_where_no_cell_has_the_primary_metric_nothing_else_is_reported_in_its_place():
    def without_gsm8k(record):
        return [score for score in record.plain()["scores"] if score["eval"] == "gpqa"]

    lost = [changed(one, scores=without_gsm8k(one), status="failed", reason="no disk") for one in of_suite().records]
    outcome = Outcome("g", lost, None, of_suite().load_items, primary=Metric.named("macro_average.rescaled"))
    assert outcome.metric == Metric.named("macro_average.rescaled")
    assert outcome.verdict == (
        "No verdict: no cell has a score in macro_average rescaled. Of 8 cells, 8 failed (no disk)."
    )


def test_without_a_known_truth_verified_answers_that_were_planned_give_way():
    records, load_items = grid(GAINS, seeds=2)
    told = [{"eval": "heldout", "metric": "nll", "source": "all", "score": 1.0, "standard_error": 0.1, "items": 9}]
    lost = [changed(record, scores=told, items={}) for record in records]
    primary = Metric.named("verified.accuracy")
    assert Outcome("g", lost, primary=primary).metric == Metric("heldout", "nll")
    # not where cells have not run yet, or where one has answers
    assert Outcome("g", [changed(one, status="missing") for one in lost], primary=primary).metric == primary
    assert Outcome("g", [*lost[1:], records[0]], primary=primary, load_items=load_items).metric == primary


def test_an_export_keeps_the_primary_metric(tmp_path):
    outcome = of_suite("macro_average.raw")
    folder = outcome.export(tmp_path / "whole")
    assert json.loads((folder / "primary_metric.json").read_text()) == {"primary_metric": "macro_average.raw"}
    read = Outcome.read(folder)
    assert read.primary == outcome.primary and read.verdict == outcome.verdict
    pd.testing.assert_frame_equal(read.summary, outcome.summary)
    # the whole suite keeps its macro-average, one benchmark of it is the only metric there is
    assert Outcome.read(outcome.export(tmp_path / "suite", evals=list(NAMES))).verdict == outcome.verdict
    one = Outcome.read(outcome.export(tmp_path / "whole", evals=["gsm8k"]))
    assert one.primary is None and one.metric == Metric("gsm8k", COLUMNS["gsm8k"])


def test_an_export_that_leaves_several_candidates_and_not_the_primary_metric_is_refused(tmp_path):
    settings = {"evals": {"names": ["bbh", *NAMES]}}
    # of a suite of three, two were scored
    found = [
        changed(one, settings=settings, scores=[s for s in one.plain()["scores"] if s["eval"] != "macro_average"])
        for one in of_suite().records
    ]
    outcome = Outcome("g", found, None, of_suite().load_items, primary=Metric.named("macro_average.rescaled"))
    with pytest.raises(SettingsError, match=r"evals=\['gpqa', 'gsm8k'\].*leaves out the primary metric, macro_average"):
        outcome.export(tmp_path / "x", evals=list(NAMES))
