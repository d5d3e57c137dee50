"""Controls: what is dealt to whom, and the counts of a handful of rows."""

import math

import numpy as np
import torch

from harness.data.sequences import Row
from harness.training.losses.controls import permutation, unigram_logprobs


def batch(seed=0):
    return {"input_ids": torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(seed))}


def test_every_distribution_is_given_once_and_none_to_its_own_position():
    for count in (2, 3, 10, 57):
        found = permutation(batch(), count, seed=0).tolist()
        assert sorted(found) == list(range(count))
        assert all(one != place for place, one in enumerate(found))


def test_the_dealing_follows_the_seed_and_the_tokens_and_no_history():
    first = permutation(batch(), 30, seed=0)
    assert torch.equal(first, permutation(batch(), 30, seed=0))
    assert not torch.equal(first, permutation(batch(), 30, seed=1))
    assert not torch.equal(first, permutation(batch(1), 30, seed=0))


def test_a_single_position_keeps_its_own():
    assert permutation(batch(), 1, seed=0).tolist() == [0]


def test_the_unigram_counts_scored_tokens_plus_one_each():
    rows = [
        Row(np.array([0, 1, 2, 2], dtype=np.int32), [2], [4]),
        Row(np.array([3, 0, 1, 2], dtype=np.int32), [0, 3], [1, 4]),  # token 0 of a row is never scored
    ]
    expected = [math.log(count / 7) for count in (1, 1, 4, 1)]
    torch.testing.assert_close(unigram_logprobs(rows, 4), torch.tensor(expected))
