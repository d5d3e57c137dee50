"""Outcomes: what is exported is read back to the same tables, without weights, texts or rows."""

import json

import pandas as pd
import pytest

import harness.api as harness
from harness.config.checks import SettingsError
from harness.results.outcome import Outcome
from tests.invented_records import changed, grid

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
