"""Records: read from a stored line and written again as it was, or refused with the key that is wrong."""

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.config.checks import SettingsError
from harness.results.cost import Cost
from harness.results.items import read_items
from harness.results.records import Record, _scored_on, _scores, lines_of, read_records
from tests.invented_records import cell

STORED = sorted((Path(__file__).parents[2] / "analysis" / "stored").glob("*/records.jsonl"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_stored_records_are_written_byte_for_byte_as_they_were_read(path):
    text = path.read_text()
    found = read_records(text)
    assert lines_of(found) == text
    assert {record.role for record in found} == {"student", "base", "teacher"}


def test_a_record_has_typed_scores_and_costs_and_gives_its_plain_values_back():
    plain = cell("kd", 0.1, 0, [1.0, 0.0]).plain()
    counts = {"items": 4, "own": 2, "teacher_only": 1, "student_rows": 1, "synthetic_rows": 1, "in_context_rows": 0}
    plain["contamination"] = {"verified": {**counts, "teacher_rows": 1, "without": {"accuracy": None}}}
    record = Record.of(json.loads(json.dumps(plain)))
    assert (record.scores[0].metric, record.scores[0].score, record.scores[0].items) == ("accuracy", 0.5, 2)
    assert record.cost["total"] == Cost(1.1e5, 2.1e11, 10.0)
    assert record.contamination["verified"].without == {"accuracy": None}
    assert record.plain() == plain and list(record.plain()) == list(plain)


@pytest.mark.parametrize(("change", "why"), [({"status": ...}, "lacks this key"), ({"statsu": "done"}, "no such key")])
def test_a_record_with_a_missing_or_unknown_key_is_refused_by_name(change, why):
    plain = {**cell("kd", 0.1, 0, [1.0]).plain(), **change}
    plain = {name: value for name, value in plain.items() if value is not ...}
    with pytest.raises(SettingsError, match=f"record='{next(iter(change))}'.*{why}"):
        Record.of(plain)


@pytest.mark.parametrize(
    ("scored", "words"),
    [
        ({"files": ["pubmedqa_test.jsonl"], "splits": ["test"]}, "pubmedqa_test.jsonl (split test)"),
        ({"files": ["mbpp.jsonl"], "splits": ["all"]}, "mbpp.jsonl (all of it)"),
        ({"data": "openai/gsm8k", "splits": ["test"]}, "openai/gsm8k (split test)"),
    ],
)
def test_a_record_names_the_data_and_the_split_that_was_scored(scored, words):
    assert _scored_on("x", {"resolved": {"lm_eval": "0", "scored": scored}}) == {"x": words}
    # scores that were made before this was recorded
    assert _scored_on("x", {"resolved": {"lm_eval": "0"}}) == {} == _scored_on("x", {})


@pytest.mark.parametrize("content", ["", "[", "3", '[{"nonesuch": 1}]'])
def test_scores_that_are_damaged_are_named_in_one_sentence(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(SettingsError, match=rf"^store='{tmp_path}/scores\.json' .*the file is damaged") as refusal:
        _scores(tmp_path / "scores.json")
    assert "\n" not in str(refusal.value)
    with pytest.raises(FileNotFoundError, match="nonesuch"):
        _scores(tmp_path / "nonesuch")


def test_items_that_are_damaged_are_named_in_one_sentence(tmp_path):
    file = tmp_path / "items.parquet"
    pd.DataFrame({"score": [1.0] * 100}).to_parquet(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SettingsError, match=rf"^store='{file}' .*the file is damaged"):
        read_items(str(file))
    with pytest.raises(FileNotFoundError, match="nonesuch"):
        read_items(str(tmp_path / "nonesuch"))
