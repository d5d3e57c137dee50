"""The evaluate stage from a mixture's held-out rows to items and scores."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.models.loading import save_model
from harness.stages.evaluate import make_evaluate
from tests.doubles import CHAT_TEMPLATE, byte_tokenizer, save_tiny, tiny_llama
from tests.thinking import family_tokenizer

COLUMNS = [
    "eval",
    "id",
    "source",
    "prompt_hash",
    "prediction",
    "target",
    "score",
    "nll",
    "nll_tokens",
    "nll_truth",
    "nll_truth_tokens",
    "truncated",
    "hit_length_limit",
    "parsed",
    "cluster",
    "tokens",
]
SETTINGS = {
    "heldout": {"eval": "heldout", "limit": None},
    "verified": {"eval": "verified", "limit": None, "max_new_tokens": 3},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    rows = [
        {
            "id": f"r{i}",
            "source": ("add", "sort", "canary")[i % 3],
            "prompt_hash": f"p{i}",
            "row_hash": f"h{i}",
            "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}],
            "truth": None if i % 2 else f"t{i}",
        }
        for i in range(30)
    ]
    (root / "mixture").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "mixture" / "heldout.parquet")
    return {"model": save_tiny(root / "model"), "mixture": root / "mixture"}


def evaluated(inputs, out, name):
    """Facts, items and scores of one evaluation."""
    out.mkdir()
    facts = make_evaluate(SETTINGS[name], inputs, out, Machine(device="cpu"))
    table = pq.read_table(out / "items.parquet")
    assert table.column_names == COLUMNS
    json.dumps(facts, allow_nan=False)
    return facts, table.to_pylist(), json.loads((out / "scores.json").read_text())


def test_items_have_every_column_and_scores_cover_every_source(inputs, tmp_path):
    facts, items, scores = evaluated(inputs, tmp_path / "heldout", "heldout")
    assert {(score["eval"], score["metric"]) for score in scores} == {("heldout", "nll"), ("heldout", "nll_truth")}
    assert {score["source"] for score in scores} == {"all", "add", "sort", "canary"}
    everything = next(score for score in scores if score["metric"] == "nll" and score["source"] == "all")
    mine = [item for item in items if item["source"] != "canary"]
    assert everything["items"] == len(mine) == 20 and len(items) == 30
    by_hand = sum(item["nll"] for item in mine) / sum(item["nll_tokens"] for item in mine)
    assert everything["score"] == facts["metrics"]["heldout.nll"] == pytest.approx(by_hand)


def test_answers_are_counted_and_what_they_cost(inputs, tmp_path):
    facts, items, scores = evaluated(inputs, tmp_path / "verified", "verified")
    assert {(score["eval"], score["metric"]) for score in scores} == {("verified", "accuracy")}
    assert len(items) == facts["counts"]["verified.without_truth"] == 15
    assert facts["cost"]["flops"] > 0 and facts["cost"]["generated_tokens"] > 0
    assert any("cut off" in warning for warning in facts["warnings"])  # a random model rarely ends its turn


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_model_is_scored_the_same_twice(inputs, tmp_path, name):
    one, two = (evaluated(inputs, tmp_path / out, name)[2] for out in ("one", "two"))
    assert one == two


def test_answers_that_end_within_their_reasoning_are_warned_about(inputs, tmp_path):
    tokenizer = family_tokenizer("qwen3_5_think")
    save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "model")
    facts, items, _ = evaluated({**inputs, "model": tmp_path / "model"}, tmp_path / "verified", "verified")
    # a random model does not end the reasoning that its prompt begins
    assert facts["counts"]["verified.unclosed_reasoning"] == len(items) == 15
    assert {item["prediction"] for item in items} == {""}
    (warning,) = [one for one in facts["warnings"] if "within their reasoning" in one]
    assert "15 answers to 15 items" in warning and "raise corpus.max_new_tokens" in warning


def test_heldout_rows_that_the_template_rejects_are_left_out_and_counted_where_bad_rows_are_dropped(tmp_path):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    tokenizer = byte_tokenizer(refusing + CHAT_TEMPLATE)
    save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "model")
    rows = []
    for i in range(8):
        turns = [{"role": "user", "content": f"q{i} <|end|>"}, {"role": "assistant", "content": "a"}]
        first = [{"role": "system", "content": "s"}] if i < 3 else []
        rows.append({"id": f"r{i}", "source": "one", "prompt_hash": f"p{i}", "messages": first + turns, "truth": None})
    (tmp_path / "mixture").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mixture" / "heldout.parquet")
    inputs = {"model": tmp_path / "model", "mixture": tmp_path / "mixture"}
    (tmp_path / "dropped").mkdir()
    asked = {**SETTINGS["heldout"], "where": {"on_bad_row": "drop"}}
    facts = make_evaluate(asked, inputs, tmp_path / "dropped", Machine(device="cpu"))
    assert facts["counts"]["heldout.rejected_by_template"] == 3 and facts["counts"]["heldout.rows"] == 5
    assert facts["counts"]["heldout.control_tokens"] == 5
    assert any("3 held-out rows are not scored" in said for said in facts["warnings"])
    with pytest.raises(SettingsError, match="no system turns"):
        make_evaluate(SETTINGS["heldout"], inputs, tmp_path / "dropped", Machine(device="cpu"))
