"""Ranks of warnings: what changes a conclusion stands first, wherever warnings are read."""

import random

import pytest

from harness.report.model_card import card_text
from harness.report.tables import warnings_sheet
from harness.results.arms import Metric
from harness.results.table import summary
from harness.results.warning_ranks import Rank, grid_warnings, rank_of, ranked
from tests.invented_records import changed, grid
from tests.report.test_model_card import FULL, receipt

ACCURACY = Metric("verified", "accuracy")
IN_ORDER = {
    "memory: 399 of 500 items of pubmedqa are in the training rows: this score measures memory": Rank.MEMORY,
    "one seed: every gain is a hint (one seed)": Rank.ONE_SEED,
    "lost cells: 1 diverged of 6 (kd at 1 %)": Rank.LOST,
    "data_frac=0.01 is 0.5 of the rows here: every source gives whole rows": Rank.ROWS,
    "contamination: 12 of 500 items of gsm8k are repeated in training rows": Rank.SCORES,
    "gsm8k: 40 of 500 answers could not be parsed and count as wrong": Rank.SCORES,
    "verified accuracy is exactly 0, all wrong, on 1200 items: look at the answers": Rank.SCORES,
    "cold start: the student's NLL on its rows was 9.00 nats per token at step 1": Rank.TRAINING,
    "6e10 FLOPs were spent where the budget's share is 4e10": Rank.TRAINING,
    "made after a CUDA out-of-memory error with half of the micro-batch": Rank.NOTE,
}


@pytest.mark.parametrize(("warning", "rank"), IN_ORDER.items())
def test_a_warning_is_ranked_by_what_it_is_about(warning, rank):
    assert rank_of(warning) == rank


@pytest.mark.parametrize("seed", range(3))
def test_warnings_are_read_in_one_order_whatever_order_they_were_found_in(seed):
    found = list(IN_ORDER)
    random.Random(seed).shuffle(found)
    assert [rank_of(one) for one in ranked([*found, *found])] == list(IN_ORDER.values())
    records, _ = grid({"kd": {0.1: 0.1}}, seeds=2)
    records[0] = changed(records[0], warnings=found)
    texts = [row[0].text for row in warnings_sheet(records).rows]
    assert [rank_of(text) for text in texts] == list(IN_ORDER.values())


def test_a_grid_warns_of_one_seed_and_of_lost_cells_first_of_all():
    records, load_items = grid({"kd": {0.01: 0.2, 1.0: 0.0}}, seeds=2)
    assert grid_warnings(records, summary(records, load_items), ACCURACY) == []
    alone = [one for one in records if one.seed == 0]
    (one,) = grid_warnings(alone, summary(alone, load_items), ACCURACY)
    assert one.startswith("one seed: every gain is a hint (one seed)") and rank_of(one) == Rank.ONE_SEED
    some = [one for one in records if one.seed == 0 or one.data_frac == 1.0]
    (one,) = grid_warnings(some, summary(some, load_items), ACCURACY)
    assert one.startswith("one seed: 1 of 2 gains are hints (one seed)")
    records[1] = changed(records[1], status="failed", failure_class="diverged", reason="loss is NaN", scores=[])
    (lost,) = grid_warnings(records, summary(records, load_items), ACCURACY)
    assert lost.startswith("lost cells: 1 diverged of 8 (kd at 1 %)") and rank_of(lost) == Rank.LOST


def test_a_card_has_its_warnings_below_the_first_sentence():
    text = card_text(receipt(**FULL))
    assert text.index("**hint: ahead of SFT") < text.index("## Warnings") < text.index("## Scores")
