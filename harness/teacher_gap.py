"""Teacher gap: does the gain over SFT follow the teacher's lead over SFT?

The score of SFT sits in both, so its noise alone would make a slope. At one data fraction all teachers meet the same
SFT cells, whose seeds then only shift both; what is left is the noise of items, and that is taken out by cross-fitting:
the gaps that weigh one half of the items are measured on the other half, and the other way round.

    slope(gains, teachers, strata)      # gains (T, S, N) of T teachers' students, teachers' scores (T, N)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.checks import refuse
from harness.stats import Array, Interval, seeds_and_items


def slope(gains: Array, teachers: Array, strata: Sequence[Any] | None = None, level: float = 0.95) -> Interval:
    """Points of gain per point of the teacher's score, over new seeds and items, for these teachers only.

    A gap is the teacher's score minus SFT's, and SFT's is the same for all teachers: the slope over gaps is that over
    the teachers' scores. Raises SettingsError for fewer than three teachers, and where their scores do not differ.
    """
    count, _, items = gains.shape
    if count < 3:
        raise refuse("teachers", count, "a slope over teachers needs three or more")
    halves = halves_of(items, strata)
    weighted = np.zeros(gains.shape[1:])
    for half in (0, 1):
        here, there = halves == half, halves != half
        lead = teachers[:, there].mean(1) - teachers[:, there].mean()
        if not (lead**2).sum() > 0:
            raise refuse("teachers", teachers.mean(1).tolist(), "their scores are all the same, so there is no slope")
        weighted[:, here] = np.einsum("t,tsn->sn", lead / (lead**2).sum(), gains[:, :, here])
    return seeds_and_items(weighted, strata, level)


def halves_of(items: int, strata: Sequence[Any] | None = None) -> np.ndarray:
    """0 or 1 for each item, alternating within each source, so that both halves hold as many of every one."""
    names = np.zeros(items) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    halves = np.empty(items, dtype=int)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        halves[members] = np.arange(len(members)) % 2
    return halves
