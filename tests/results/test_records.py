"""Records: read from a stored line and written again as it was, or refused with the key that is wrong."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.checks import SettingsError
from harness.plan.frozen import FrozenPlan
from harness.results.cost import Cost
from harness.results.records import Record, _scored_on, lines_of, read_records, records
from harness.store.store import Store
from tests.invented_records import cell, frozen_cell

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


TRAIN, EVALUATE = "train-" + "aa" * 16, "evaluate-" + "bb" * 16


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A store with one trained and scored cell, whose rows were not compared with items, and its plan."""
    monkeypatch.setattr("harness.results.contamination.Contamination.repeated", lambda *given: (None, []))
    store = Store.open(tmp_path / "store")
    score = cell("sft", 0.1, 0, [1.0, 0.0]).plain()["scores"][0]
    for key, name, text in ((TRAIN, "log.jsonl", "{}"), (EVALUATE, "scores.json", json.dumps([score]))):
        with store.scratch(key) as out:
            (out / name).write_text(text)
            (out / "items.parquet").write_bytes(b"PAR1")
            inputs = {"model": TRAIN} if key == EVALUATE else {}
            store.publish(key, out, {"facts": {}, "inputs": inputs, "published": time.time()})
    names = {"method": "sft", "data_frac": 0.1, "student": "mini", "seed": 0}
    keys = {"needs": (TRAIN, EVALUATE), "train": (TRAIN,), "evaluations": {"verified": EVALUATE}}
    specs = {
        key: {"address": key, "kind": key.split("-")[0], "inputs": {}, "settings": {}} for key in (TRAIN, EVALUATE)
    }
    return store, FrozenPlan("g", specs, (frozen_cell(**names, **keys),))


@pytest.mark.parametrize("name", ["scores.json", "items.parquet"])
def test_a_damaged_evaluation_is_a_failed_record_that_names_the_file(scored, name):
    store, frozen = scored
    assert records(store, frozen)[0].status == "done"
    os.truncate(store.folder(EVALUATE) / name, 3)
    (record,) = records(store, frozen)
    assert (record.status, record.failure_class, record.scores) == ("failed", "input", ())
    assert f"{name} has 3 bytes" in record.reason and EVALUATE in record.reason
    assert "run its grid's command again" in record.reason


def test_scores_made_from_a_damaged_model_say_so_until_they_are_made_again(scored):
    store, frozen = scored
    store.set_aside(TRAIN, "model.safetensors has another content", suspects=[EVALUATE])
    (record,) = records(store, frozen)
    assert record.warnings[0].startswith(f"damaged: {EVALUATE} was made from {TRAIN}, which was damaged")
    assert record.scores  # they stay


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
LINE = json.dumps(cell("kd", 0.1, 0, [1.0, 0.0]).plain())


def read_or_refused(text):
    """Odd lines are refused in one sentence that names the line; anything else that is raised fails the test."""
    try:
        return read_records(text)
    except SettingsError as error:
        assert str(error).startswith("records.jsonl, line ") and "\n" not in str(error)
        return None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(LINE) - 1))
def test_a_line_that_was_cut_off_is_named(end):
    found = read_or_refused(LINE + "\n" + LINE[:end])
    assert found is None or (end == 0 and len(found) == 1)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_record_with_an_odd_value_is_read_or_named_and_never_a_traceback(data):
    plain = json.loads(LINE)
    place, name = plain, data.draw(st.sampled_from(sorted(plain)))
    if plain[name] and isinstance(plain[name], dict | list) and data.draw(st.booleans()):
        place = plain[name]
        name = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[name], dict) and place[name]:
            place = place[name]
            name = data.draw(st.sampled_from(sorted(place)))
    place[name] = data.draw(ODD)
    found = read_or_refused(json.dumps(plain))
    if found:
        lines_of(found)


@settings(max_examples=60, deadline=None)
@given(ODD | st.text(max_size=40))
def test_a_line_that_is_no_record_is_named(given):
    text = given if isinstance(given, str) else json.dumps(given)
    assert read_or_refused(text) in (None, [])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scores": "0.5"}, "record.scores='0.5' cannot be run: it is a list"),
        ({"scores": [{"eval": "x"}]}, "it lacks metric, source, score"),
        ({"cost": {"total": 3}}, "each has the keys tokens, flops, seconds"),
        ({"seed": "0"}, "record.seed='0' cannot be run: it is a whole number or null"),
    ],
)
def test_a_value_of_another_form_is_named_with_its_key(change, told):
    with pytest.raises(SettingsError, match=r"records\.jsonl, line 2") as raised:
        read_records(LINE + "\n" + json.dumps(json.loads(LINE) | change))
    assert told in str(raised.value)
