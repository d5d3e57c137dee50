"""Coverage: how often the study's intervals hold what was planted, beside a t interval that pools all seeds.

    python benchmarks/interval_coverage.py                      4,000 repetitions, about half an hour on one core
    python benchmarks/interval_coverage.py --repetitions 200

Every repetition invents a grid with a planted gain curve over the data fractions: replicates with a gain of
their own, seeds with an intercept and a residual, items that all cells share, less variance at the whole data (where
no rows are drawn). Scores are normal, or right and wrong. Prints JSON: for every design and curve the share of
repetitions in which the 95 % interval of the gain at one fraction, of its shrinking from 3 % to 100 %, and the
crossover set hold the truth, and the same of the pooled t interval. Curves that never cross zero say so in `called`,
how often each answer was given.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
from scipy import stats as reference

from harness.results.stats.crossover import crossover
from harness.results.stats.intervals import Array, curve_over_replicates

FRACTIONS = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
X = np.log10(FRACTIONS)
CURVES: dict[str, Callable[[Array], Array]] = {
    "crosses at 20 %": lambda x: -0.05 * (x - np.log10(0.2)),
    "crosses, curved": lambda x: -0.05 * (x - np.log10(0.2)) - 0.02 * (x - np.log10(0.2)) * (x + 1),
    "inverted U above zero": lambda x: 0.09 - 0.035 * (x + 1.4) ** 2,
    "shrinks without crossing": lambda x: 0.05 - 0.025 * x,
    "none": lambda x: 0 * x,
}
ROOTS = {"crosses at 20 %": 0.2, "crosses, curved": 0.2}
DESIGNS = {
    "5 draws x 2 seeds": (5, 2),
    "10 draws x 2 seeds": (10, 2),
    "1 draw x 3 seeds": (1, 3),
    "1 draw x 10 seeds": (1, 10),
}
ITEMS = 120
DRAW, SEED, REST = 0.02, 0.015, 0.012


def gains(generator: np.random.Generator, draws: int, seeds: int, curve: Array, binary: bool) -> list[Array]:
    """Paired gains (S, F, N) of each draw; the truth is `curve` (F,), the mean over draws, seeds and items."""
    found = []
    shrink = np.where(FRACTIONS == 1, 0.5, 1.0)[:, None]
    for _ in range(draws):
        own = generator.normal(0, DRAW if draws > 1 else 0, (1, 1, 1))
        of_seed = generator.normal(0, SEED, (seeds, 1, 1)) + generator.normal(0, REST, (seeds, len(X), 1)) * shrink
        of_item = generator.normal(0, 0.1, (1, 1, ITEMS)) + generator.normal(0, 0.05, (1, len(X), ITEMS))
        level = curve[None, :, None] + own + of_seed
        if not binary:
            found.append(level + of_item + generator.normal(0, 0.2, (seeds, len(X), ITEMS)))
            continue
        base = np.clip(0.45 + 0.8 * of_item, 0.15, 0.7)
        draw = generator.random((2, seeds, len(X), ITEMS))
        found.append((draw[0] < base + level).astype(float) - (draw[1] < base))
    return found


def one(generator: np.random.Generator, shape: str, design: str, binary: bool) -> dict[str, bool | str]:
    """What one invented grid's intervals hold."""
    truth = CURVES[shape](X)
    draws = gains(generator, *DESIGNS[design], truth, binary)
    measured = curve_over_replicates(draws, [None] * len(draws))
    contrast = np.array([0.0, 1, 0, 0, -1])
    at, shrinks = measured.intervals(np.stack([np.eye(len(X))[1], contrast]))
    seeds = np.concatenate([draw.mean(2) for draw in draws])
    held: dict[str, bool | str] = {
        "gain": at.low <= truth[1] <= at.high,
        "shrinking": shrinks.low <= truth[1] - truth[4] <= shrinks.high,
        "gain, seeds pooled": _t_holds(seeds[:, 1], truth[1]),
        "shrinking, seeds pooled": _t_holds(seeds @ contrast, truth[1] - truth[4]),
    }
    found = crossover(FRACTIONS.tolist(), measured)
    if shape in ROOTS:
        held["crossover set"] = any(low * 0.97 <= ROOTS[shape] <= high * 1.03 for low, high in found.pieces)
    held["called"] = found.status + (" above" if found.sign > 0 else " below" if found.sign < 0 else "")
    return held


def _t_holds(values: Array, truth: float) -> bool:
    low, high = reference.ttest_1samp(values, 0).confidence_interval()
    return bool(low <= truth <= high)


def coverage(repetitions: int, designs: list[str], seed: int = 0) -> list[dict[str, object]]:
    """One row per design, curve and kind of score."""
    rows = []
    for design in designs:
        for shape in CURVES:
            for binary in (False, True):
                generator = np.random.default_rng(seed)
                held = [one(generator, shape, design, binary) for _ in range(repetitions)]
                row: dict[str, object] = {"design": design, "curve": shape, "scores": "0/1" if binary else "normal"}
                row |= {name: round(float(np.mean([h[name] for h in held])), 3) for name in held[0] if name != "called"}
                answers = Counter(str(h["called"]) for h in held)
                rows.append(row | {"called": {name: round(n / repetitions, 3) for name, n in answers.most_common()}})
    return rows


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--designs", nargs="*", default=list(DESIGNS), choices=list(DESIGNS))
    given = parser.parse_args()
    print(json.dumps({"repetitions": given.repetitions, "rows": coverage(given.repetitions, given.designs)}, indent=1))


if __name__ == "__main__":
    main()
