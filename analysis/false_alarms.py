"""False alarms: how often an A/A grid claims a difference between cells that differ in their training seed alone.

Every pair of training seeds plays method and SFT, over every choice of data seeds; each such comparison goes through
the statistics of the study. About one in twenty may claim. The comparisons share cells, so the share is rough.

    python -m analysis.false_alarms controls_aa --store outputs
"""

import argparse
from itertools import combinations

import pandas as pd

from harness.api import items
from harness.results.stats.intervals import seeds_and_items


def false_alarms(frame: pd.DataFrame, data_seeds: int) -> pd.DataFrame:
    """One row per comparison over `data_seeds` of the data seeds: its gain, interval and whether it claims.

    `frame` is `harness.api.items(...)` of a grid of one arm at one fraction, every data seed with every training seed.
    """
    wide = frame.pivot_table(index=["source", "id"], columns=["data_seed", "train_seed"], values="score").dropna()
    strata = wide.index.get_level_values("source").tolist()
    found = []
    for chosen in combinations(wide.columns.unique("data_seed"), data_seeds):
        for one, other in combinations(wide.columns.unique("train_seed"), 2):
            gain = [(wide[seed, one] - wide[seed, other]).to_numpy() for seed in chosen]
            interval = seeds_and_items(gain, strata)
            claims = interval.low > 0 or interval.high < 0
            found.append((chosen, one, other, interval.estimate, interval.low, interval.high, claims))
    return pd.DataFrame(found, columns=["data_seeds", "train_seed", "against", "gain", "low", "high", "claims"])


def main() -> None:
    """Print the share of comparisons that claim a difference, by the number of seeds in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid")
    parser.add_argument("--store", default="outputs")
    given = parser.parse_args()
    frame = items(given.grid, given.store)
    frame = frame[(frame["role"] == "student") & (frame["eval"] == "verified")]
    for count in range(2, frame["data_seed"].nunique() + 1):
        found = false_alarms(frame, count)
        print(
            f"{count} seeds: {found['claims'].sum()} of {len(found)} comparisons claim a difference "
            f"({found['claims'].mean():.1%}); largest {found['gain'].abs().max():.3f}"
        )


if __name__ == "__main__":
    main()
