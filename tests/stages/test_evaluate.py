"""The evaluate stage from a mixture's held-out rows to items and scores."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config import Machine
from harness.evals import HeldoutRow
from harness.stages.evaluate import choose_rows, make_evaluate
from tests.doubles import save_tiny

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
]
SETTINGS = {"evals": ["heldout", "verified"], "limit": None, "max_new_tokens": 3}


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


def test_items_have_every_column_and_scores_cover_every_source(inputs, tmp_path):
    facts = make_evaluate(SETTINGS, inputs, tmp_path, Machine(device="cpu"))
    table = pq.read_table(tmp_path / "items.parquet")
    assert table.column_names == COLUMNS
    items = table.to_pylist()
    assert Counter(item["eval"] for item in items) == {"heldout": 30, "verified": 15}
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {(score["eval"], score["metric"]) for score in scores} == {
        ("heldout", "nll"),
        ("heldout", "nll_truth"),
        ("verified", "accuracy"),
    }
    assert {score["source"] for score in scores} == {"all", "add", "sort", "canary"}
    everything = next(score for score in scores if score["metric"] == "nll" and score["source"] == "all")
    mine = [item for item in items if item["eval"] == "heldout" and item["source"] != "canary"]
    assert everything["items"] == len(mine) == 20
    by_hand = sum(item["nll"] for item in mine) / sum(item["nll_tokens"] for item in mine)
    assert everything["score"] == facts["metrics"]["heldout.nll"] == pytest.approx(by_hand)
    assert facts["counts"]["verified.without_truth"] == 15
    assert facts["cost"]["flops"] > 0 and facts["cost"]["generated_tokens"] > 0
    assert any("cut off" in warning for warning in facts["warnings"])  # a random model rarely ends its turn
    json.dumps(facts, allow_nan=False)


def test_the_same_model_is_scored_the_same_twice(inputs, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_evaluate(SETTINGS, inputs, tmp_path / name, Machine(device="cpu"))
    assert (tmp_path / "one" / "scores.json").read_text() == (tmp_path / "two" / "scores.json").read_text()


def test_a_limit_takes_each_source_in_proportion_and_nests():
    rows = [HeldoutRow(f"r{i}", [], "large" if i % 4 else "small", "") for i in range(80)]
    ten, forty = choose_rows(rows, 8, seed=0), choose_rows(rows, 40, seed=0)
    assert Counter(row.source for row in ten) == {"large": 6, "small": 2}
    assert Counter(row.source for row in forty) == {"large": 30, "small": 10}
    assert {row.id for row in ten} <= {row.id for row in forty}
    assert choose_rows(rows, 8, seed=1) != ten
    assert choose_rows(rows, None, 0) == choose_rows(rows, 99, 0) == rows
