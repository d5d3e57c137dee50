"""Visiting order, budgets and padding, against values worked by hand."""

import numpy as np
import pytest
from datasets import Dataset

from harness.config.budget import Budget
from harness.data.sequences import (
    Row,
    Rows,
    answered,
    collate,
    mixed_visits,
    of_like_length,
    prompt_of,
    sorted_by_length,
    span_of,
    total_steps,
    visits,
)


def dataset():
    return Dataset.from_dict(
        {
            "input_ids": [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11]],
            "starts": [[2], [1], [1, 4]],
            "ends": [[4], [2], [2, 5]],
        }
    )


def test_a_shorter_budget_sees_a_prefix_of_a_longer_one():
    assert np.array_equal(visits(10, 7, 4, seed=3), visits(10, 50, 4, seed=3)[:7])


def test_every_epoch_holds_each_row_once_and_in_a_new_order():
    order = visits(10, 6, 5, seed=0).reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in order.tolist())
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3


def test_another_seed_is_another_order():
    assert not np.array_equal(visits(100, 3, 10, seed=0), visits(100, 3, 10, seed=1))


def test_a_batch_may_be_larger_than_the_data():
    assert np.bincount(visits(3, 1, 8, seed=0)[0]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_neighbouring_spans_together_see_what_one_stage_sees():
    order = visits(20, 33, 4, seed=0)
    together = np.concatenate([span_of(order, (0.0, 0.2)), span_of(order, (0.2, 1.0))])
    assert np.array_equal(together, order)


@pytest.mark.parametrize(
    ("kind", "amount", "expected"),
    [("steps", 300, 300), ("epochs", 3, 8), ("epochs", 0.01, 1), ("trained_tokens", 1, 1)],
)
def test_steps_of_a_budget_over_ten_rows_in_batches_of_four(kind, amount, expected):
    budget = Budget(kind=kind, amount=amount, batch_size=4)
    assert total_steps(budget, [5] * 10, seed=0) == expected


@pytest.mark.parametrize(
    ("kind", "amount", "expected"), [("steps", 5, 8), ("steps", 9, 9), ("epochs", 3, 8), ("trained_tokens", 1, 8)]
)
def test_a_budget_has_at_least_its_floor_of_steps(kind, amount, expected):
    budget = Budget(kind=kind, amount=amount, batch_size=4, min_steps=8)
    assert total_steps(budget, [5] * 10, seed=0) == expected


def test_a_token_budget_stops_at_the_first_step_that_reaches_it():
    tokens = [3, 9, 4, 1, 7, 5, 2]
    for amount in (1, 10, 31, 32, 62, 63, 100):
        budget = Budget(kind="trained_tokens", amount=amount, batch_size=3)
        steps = total_steps(budget, tokens, seed=5)
        scored = [sum(tokens[i] for i in visits(7, n, 3, seed=5).ravel()) for n in (steps - 1, steps)]
        assert scored[0] < amount <= scored[1]


def test_rows_are_read_as_they_were_written_also_from_a_selection():
    rows = Rows(dataset().select([2, 0]))
    assert [(row.input_ids.tolist(), row.starts, row.ends) for row in rows] == [
        ([7, 8, 9, 10, 11], [1, 4], [2, 5]),
        ([1, 2, 3, 4], [2], [4]),
    ]
    assert rows.response_tokens.tolist() == [2, 2]


def test_loss_on_all_scores_every_token_but_the_first():
    rows = Rows(dataset(), loss_on="all")
    assert rows.response_tokens.tolist() == [3, 1, 4]
    assert collate([rows[1]], pad_id=0)["labels"].tolist() == [[-100, 6]]


def test_padding_is_on_the_right_and_never_read_or_scored():
    rows = Rows(dataset())
    batch = collate([rows[0], rows[2]], pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 0], [7, 8, 9, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, -100], [-100, 8, -100, -100, 11]]


def test_an_end_of_turn_token_that_is_also_the_pad_token_stays_scored():
    batch = collate([Row(np.array([1, 9]), [1], [2]), Row(np.array([1, 2, 9]), [1], [3])], pad_id=9)
    assert batch["labels"].tolist() == [[-100, 9, -100], [-100, 2, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_every_assistant_turn_can_be_the_prompt_of_a_visit():
    row = Rows(dataset())[2]
    assert {tuple(prompt_of(row, seed)) for seed in range(20)} == {(7,), (7, 8, 9, 10)}


def test_generated_text_is_scored_on_the_answer_alone():
    row = answered([1, 2, 3], [4, 5])
    assert (row.input_ids.tolist(), row.starts, row.ends) == ([1, 2, 3, 4, 5], [3], [5])


def test_micro_batches_of_a_step_hold_rows_of_like_length_the_longest_first():
    lengths = [[5, 90, 7], [80, 6], [4, 70, 8]]
    groups = [[Row(np.full(size, size, np.int32), [1], [size]) for size in group] for group in lengths]
    dealt = sorted_by_length(groups)
    assert [[len(row.input_ids) for row in group] for group in dealt] == [[90, 80, 70], [8, 7], [6, 5, 4]]
    padded = [sum(collate(group, 0)["input_ids"].numel() for group in found) for found in (groups, dealt)]
    assert padded == [270 + 160 + 210, 270 + 16 + 18]
    assert sorted_by_length(groups[:1]) == [groups[0]]  # one micro-batch keeps its order, and so its bits


def test_rows_of_like_length_are_the_same_visits_with_less_padding():
    lengths = np.random.default_rng(0).integers(5, 40, 1000)
    batches = visits(1000, 60, 16, seed=1)
    grouped = of_like_length(batches, lengths, seed=1)
    for start in range(0, 60, 25):
        assert sorted(grouped[start : start + 25].ravel()) == sorted(batches[start : start + 25].ravel())
    assert lengths[grouped].max(axis=1).sum() < 0.75 * lengths[batches].max(axis=1).sum()
    assert (grouped == of_like_length(batches, lengths, seed=1)).all()
    widths = lengths[grouped].max(axis=1)
    assert not (np.diff(widths[:25]) >= 0).all(), "batches come in a seeded order, not shortest first"


@pytest.mark.parametrize(("share", "per_step"), [(0.5, {4}), (0.25, {2}), (0.3, {2, 3}), (0.01, {0, 1})])
def test_mixed_visits_hold_the_human_share_to_a_row_at_every_step(share, per_step):
    order = mixed_visits(30, 5, share, steps=200, batch_size=8, seed=0)
    human = (order >= 30).sum(axis=1)
    assert set(human.tolist()) == per_step
    assert np.abs(np.cumsum(human) - share * 8 * np.arange(1, 201)).max() <= 0.5
    for first, rows in ((0, 30), (30, 5)):
        visited = np.bincount(order[(order >= first) & (order < first + rows)] - first, minlength=rows)
        assert visited.max() - visited.min() <= 1, "every row of a kind is visited as often as the others"


def test_natural_mixing_visits_all_rows_alike():
    order = mixed_visits(30, 5, 0.0, steps=35, batch_size=8, seed=0)
    assert np.bincount(order.ravel()).tolist() == [8] * 35


def test_mixed_visits_are_seeded_and_a_shorter_budget_sees_a_prefix():
    order = mixed_visits(30, 5, 0.3, steps=20, batch_size=8, seed=0)
    assert np.array_equal(order[:7], mixed_visits(30, 5, 0.3, steps=7, batch_size=8, seed=0))
    assert not np.array_equal(order, mixed_visits(30, 5, 0.3, steps=20, batch_size=8, seed=1))
