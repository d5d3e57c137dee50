"""DistiLLM's share and buffer without a model: a scripted curve gives the scripted share."""

import json

import numpy as np
import pytest

from harness.config.recipe import CHECKS
from harness.data.sequences import answered
from harness.training.distillm import AdaptiveShare, ReplayBuffer, check_every


def row(number):
    return answered([number, 1], [number, 2, 3])


def test_a_scripted_validation_curve_gives_the_scripted_share():
    # reference 2.0; a fall and a small rise move nothing; 2.15 is 0.1 above the first loss, not above the lowest;
    # the reference is then 2.15, so 2.20 is no rise and 2.26 is
    curve = [2.0, 1.5, 2.05, 2.15, 2.20, 2.26, 1.0, 1.2]
    share, seen = AdaptiveShare(), []
    for loss in curve:
        share.observe(loss)
        seen.append(share.value)
    assert seen == [0, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.2] and share.reference == 2.26


@pytest.mark.parametrize(("most", "expected"), [(1.0, 1.0), (0.25, 0.25)])
def test_the_share_grows_by_a_tenth_at_a_time_up_to_its_cap(most, expected):
    share = AdaptiveShare(most)
    for check in range(13):
        share.observe(float(check))
        assert share.value == pytest.approx(min(most, 0.1 * check))
    assert share.value == expected


@pytest.mark.parametrize(
    ("uniform", "done", "full", "expected"),
    [
        (0.39, 0.0, True, "student"),
        (0.39, 0.5, True, "replay"),  # 0.4 x (1 - 0.5) = 0.2 is new text, the rest of 0.4 replayed
        (0.19, 0.5, True, "student"),
        (0.39, 0.5, False, "student"),  # the buffer fills first
        (0.41, 0.0, False, "given"),
        (0.0, 1.0, True, "replay"),
    ],
)
def test_a_step_writes_replays_or_trains_on_gold_as_published(uniform, done, full, expected):
    share = AdaptiveShare()
    share.value = 0.4
    assert share.decide(uniform, done, full) == expected


def test_a_share_of_nothing_never_writes():
    assert AdaptiveShare().decide(0.0, 0.0, False) == "given"


@pytest.mark.parametrize("steps", [11, 12, 60, 100, 299, 300, 1000])
def test_a_stage_has_ten_looks_after_the_first(steps):
    looks = [step for step in range(steps) if step % check_every(steps) == 0]
    assert len(looks) - 1 >= CHECKS
    assert [step for step in range(4) if step % check_every(4) == 0] == [0, 1, 2, 3]


def test_replayed_rows_were_stored_earlier_and_the_oldest_are_forgotten():
    buffer = ReplayBuffer(5)
    buffer.add(map(row, range(3)))
    assert len(buffer) == 3 and not buffer.full
    buffer.add(map(row, range(3, 8)))
    assert buffer.full
    drawn = [int(one.input_ids[0]) for one in buffer.draw(5, seed=0)]
    assert sorted(drawn) == [3, 4, 5, 6, 7]
    assert {int(one.input_ids[0]) for seed in range(20) for one in buffer.draw(2, seed)} == {3, 4, 5, 6, 7}
    assert [one.input_ids[0] for one in buffer.draw(3, 1)] == [one.input_ids[0] for one in buffer.draw(3, 1)]
    assert len(buffer.draw(9, seed=0)) == 9


def test_a_buffer_restored_from_json_draws_the_same_rows():
    buffer, other = ReplayBuffer(4), ReplayBuffer(4)
    buffer.add(map(row, range(6)))
    other.add([row(99)])
    other.restore(json.loads(json.dumps(buffer.state())))
    for one, two in zip(buffer.draw(4, seed=3), other.draw(4, seed=3), strict=True):
        assert np.array_equal(one.input_ids, two.input_ids) and one.input_ids.dtype == two.input_ids.dtype
        assert (one.starts, one.ends, one.number) == (two.starts, two.ends, two.number)
