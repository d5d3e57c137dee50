"""Coverage: how often the study's intervals hold what was planted, beside a t interval that pools all seeds.

    python benchmarks/interval_coverage.py                      4,000 repetitions, about half an hour on one core
    python benchmarks/interval_coverage.py --repetitions 200
    python benchmarks/interval_coverage.py --only lucky family  the two tables below, a minute

Every repetition invents a grid with a planted gain curve over the data fractions: replicates with a gain of
their own, seeds with an intercept and a residual, items that all cells share, less variance at the whole data (where
no rows are drawn). Scores are normal, or right and wrong. Prints JSON: for every design and curve the share of
repetitions in which the 95 % interval of the gain at one fraction, of its shrinking from 3 % to 100 %, and the
crossover set hold the truth, and the same of the pooled t interval. Curves that never cross zero say so in `called`,
how often each answer was given.

`lucky`: grids whose replicates lie close together by chance, the 5 % with the smallest spread between replicates. For
each design: how often the interval of the spread alone (t over replicates) and the study's hold the truth, in all grids
and in the lucky ones; the same with the degrees of freedom of seeds and items, in place of the replicates', where the
lower bound within replicates applies; and how much wider the study's is.

`family`: how often a family of comparisons with SFT has a false alarm, with equal and unequal scatter of the arms: of
the pooled critical value alone (Dunnett), and of `simultaneous_gains`.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
from scipy import stats as reference

from harness.results.simultaneous import critical, simultaneous_gains
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


LUCKY = 0.05
SPREADS = {
    # replicates, seeds in each, items, sd of replicates, of seeds, of what is left on one item of one seed
    "5 x 2, as the miniature's": (5, 2, 1200, 0.01, 0.02, 0.2),
    "5 x 2, replicates alike": (5, 2, 1200, 0.0, 0.02, 0.2),
    "5 x 2, few items": (5, 2, 120, 0.02, 0.019, 0.2),
    "5 x 5": (5, 5, 1200, 0.01, 0.02, 0.2),
    "5 x 1": (5, 1, 120, 0.0, 0.019, 0.2),
    "10 x 2": (10, 2, 120, 0.02, 0.019, 0.2),
    "5 x 2, replicates far apart": (5, 2, 1200, 0.02, 0.005, 0.1),
}
ITEM = 0.1


def lucky(repetitions: int, seed: int = 0) -> list[dict[str, object]]:
    """One row per design: coverage of the spread's interval and of the study's, in all grids and in the lucky ones."""
    rows = []
    for name, (count, seeds, items, of_replicate, of_seed, rest) in SPREADS.items():
        generator = np.random.default_rng(seed)
        found = []
        for _ in range(repetitions):
            draws = [
                generator.normal(0, of_replicate)
                + generator.normal(0, of_seed, (seeds, 1))
                + generator.normal(0, ITEM, (1, items))
                + generator.normal(0, rest, (seeds, items))
                for _ in range(count)
            ]
            measured = curve_over_replicates([draw[:, None, :] for draw in draws], [None] * count)
            one = measured.intervals(np.ones((1, 1)))[0]
            spread = float(np.sqrt(measured.seed[0, 0]))
            assert measured.within is not None
            _, lower, within_df = (float(part[0]) for part in measured.within.errors(np.ones((1, 1))))
            df = within_df if lower > spread else count - 1
            halves = spread * reference.t.ppf(0.975, count - 1), (one.high - one.low) / 2
            found.append((spread, *halves, one.standard_error * reference.t.ppf(0.975, df), abs(one.estimate)))
        table = np.array(found)
        few = table[:, 0] <= np.quantile(table[:, 0], LUCKY)
        row: dict[str, object] = {"design": name}
        for column, label in ((1, "the spread alone"), (2, "the study's"), (3, "with the seeds' degrees of freedom")):
            held = table[:, 4] <= table[:, column]
            row[label] = [round(float(held.mean()), 3), round(float(held[few].mean()), 3)]
        rows.append(row | {"times as wide": round(float(table[:, 2].mean() / table[:, 1].mean()), 3)})
    return rows


SCATTERS = {
    "equal": [0.008] * 9,
    "one arm of .06": [0.008] * 8 + [0.06],
    "two arms of .06": [0.008] * 7 + [0.06] * 2,
    "four arms of .06": [0.008] * 5 + [0.06] * 4,
    "from .005 to .05": list(np.geomspace(0.005, 0.05, 9)),
    "SFT of .06": [0.06] + [0.008] * 8,
    "three arms, one of .06": [0.008] * 3 + [0.06],
}


def family(repetitions: int, seed: int = 0) -> list[dict[str, object]]:
    """One row per scatter (SFT's first) and number of seeds: the share of families with a false alarm."""
    rows = []
    for name, scatter in SCATTERS.items():
        for seeds in (3, 5, 10):
            generator, alarms, pooled = np.random.default_rng(seed), 0, 0
            df = (seeds - 1) * (len(scatter) - 1)
            limit = critical(len(scatter) - 1, float(df))
            for _ in range(repetitions):
                scores = generator.normal(0, 1, (len(scatter), seeds)) * np.array(scatter)[:, None]
                arms = {str(n): one[:, None] for n, one in enumerate(scores[1:])}
                alarms += any(one.p < 0.05 for one in simultaneous_gains(scores[0][:, None], arms))
                rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
                error = np.sqrt(2 * (rest**2).sum() / df / seeds)
                pooled += bool((np.abs(scores[1:].mean(1) - scores[0].mean()) > limit * error).any())
            row: dict[str, object] = {"scatter": name, "seeds": seeds}
            rows.append(row | {"pooled alone": pooled / repetitions, "simultaneous_gains": alarms / repetitions})
    return rows


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--designs", nargs="*", default=list(DESIGNS), choices=list(DESIGNS))
    parts: dict[str, Callable[[], object]] = {
        "rows": lambda: coverage(given.repetitions, given.designs),
        "lucky": lambda: lucky(given.repetitions),
        "family": lambda: family(given.repetitions),
    }
    parser.add_argument("--only", nargs="*", default=list(parts), choices=list(parts))
    given = parser.parse_args()
    print(json.dumps({"repetitions": given.repetitions} | {name: parts[name]() for name in given.only}, indent=1))


if __name__ == "__main__":
    main()
