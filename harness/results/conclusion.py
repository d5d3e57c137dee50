"""Conclusion: what the row of a gain allows to say. Every table, sentence and figure asks here.

A gain of one seed has an interval over test items only, which holds the true gain in 57 to 85 of 100 grids in place of
95: it is a hint, whatever its p value. It never beats or loses to SFT, decides nothing and has no colour.

    conclusion(row)        # "better", "not clear", "hint: ahead (one seed)", ...
"""

import math
from collections.abc import Mapping
from typing import Any

from harness.results.stats.intervals import LEAST_REPLICATES

CLEAR = 0.05
"""p value below which a difference counts as one."""
ONE_SEED = "(one seed)"
HINT = "hint: "
BETTER, WORSE, NOT_CLEAR = "better", "worse", "not clear"
AHEAD, BEHIND = "ahead before Holm", "behind before Holm"


def one_seed(seeds: float, replicates: float) -> bool:
    """Whether an interval over this many seeds (in each replicate) excludes the variance between seeds."""
    # from LEAST_REPLICATES on the replicates are the unit, and their spread has that of the seeds in it
    return seeds < 2 and replicates < LEAST_REPLICATES


def is_hint(row: Mapping[Any, Any]) -> bool:
    """Whether the gain of a row (of `table.summary`, `breakdown`) rests on one seed."""
    return one_seed(row["paired_seeds"], row["draws"])


def conclusion(row: Mapping[Any, Any]) -> str:
    """What the gain of a row shows: BETTER or WORSE after Holm, AHEAD or BEHIND before it, NOT_CLEAR, or a hint.

    Empty for a row without a gain. Reads `gain`, `gain_p`, `gain_p_holm`, `paired_seeds`, `draws` and
    `higher_is_better`.
    """
    if math.isnan(row["gain"]):
        return ""
    better = (row["gain"] > 0) == bool(row["higher_is_better"])
    # a p value that is NaN is below nothing, so a gain without an interval is not clear
    if is_hint(row):
        side = ("ahead" if better else "behind") if row["gain_p"] < CLEAR else NOT_CLEAR
        return f"{HINT}{side} {ONE_SEED}"
    if row["gain_p_holm"] < CLEAR:
        return BETTER if better else WORSE
    if row["gain_p"] < CLEAR:
        return AHEAD if better else BEHIND
    return NOT_CLEAR


def mark(row: Mapping[Any, Any]) -> str:
    """The colour's name: `good`, `bad`, or none for whatever is not shown."""
    return {BETTER: "good", WORSE: "bad"}.get(conclusion(row), "")
