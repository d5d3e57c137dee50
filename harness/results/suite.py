"""Suite: the benchmarks of a cell's `evals.names`, and their macro-average.

The macro-average is the mean over benchmarks of each one's mean over items, so that every benchmark counts the same
whatever its size. `raw` averages the scores. `rescaled` first puts each on a scale from its floor (what guessing
scores) to 1,

    rescaled = (score - floor) / (1 - floor)

so that a benchmark of four choices, whose scores begin at 0.25, does not count less than one that begins at 0; below
its floor a score is negative. A record that lacks a benchmark's score has no macro-average, and a warning says so.
Uncertainty comes from the items, like that of any metric (`items.macro_values`).

    macro_scores({"gpqa": score, "gsm8k": score})      # rescaled and raw, of all and of each benchmark
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.evals import ALL, Score
from harness.evals.benchmarks import benchmark_names, load_benchmark
from harness.plan.metrics import LEAST_BENCHMARKS, MACRO_AVERAGE, RAW, RESCALED

if TYPE_CHECKING:
    from harness.results.records import Record


def suite_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The benchmarks of a record's settings, in order; none where there are fewer than a macro-average needs."""
    names = set((settings.get("evals") or {}).get("names") or ()) & _benchmarks()
    return tuple(sorted(names)) if len(names) >= LEAST_BENCHMARKS else ()


def floor_of(name: str) -> float:
    """What guessing scores on a benchmark. Raises SettingsError for an unknown name."""
    return load_benchmark(name).floor


def with_macro_average(scores: Sequence[Score], settings: Mapping[str, Any]) -> tuple[Score, ...]:
    """The scores of one model with its macro-averages, where every benchmark of its suite has a score."""
    own = [score for score in scores if score.eval != MACRO_AVERAGE]
    found = {name: whole for name in suite_of(settings) if (whole := _whole(own, name)) is not None}
    return (*own, *macro_scores(found)) if found and not lacking(own, settings) else tuple(own)


def lacking(scores: Iterable[Score], settings: Mapping[str, Any]) -> list[str]:
    """The benchmarks of the suite without a finite score."""
    scores = list(scores)
    return [name for name in suite_of(settings) if _whole(scores, name) is None]


def macro_scores(scores: Mapping[str, Score]) -> list[Score]:
    """The macro-averages of a whole suite, and of each benchmark its share of them (as a source of that name)."""
    found = []
    for metric in (RESCALED, RAW):
        parts = []
        for name, score in sorted(scores.items()):
            floor = floor_of(name) if metric == RESCALED else 0.0
            # a single item has no standard error; JSON, from which scores are read, holds that as null
            error: Any = None if score.standard_error is None else score.standard_error / (1 - floor)
            parts.append(Score(MACRO_AVERAGE, metric, name, (score.score - floor) / (1 - floor), error, score.items))
        mean = math.fsum(part.score for part in parts) / len(parts)
        errors = [part.standard_error for part in parts]
        # benchmarks are independent: the variance of their mean is the sum of their variances over their number squared
        error = None if None in errors else math.sqrt(math.fsum(one**2 for one in errors)) / len(parts)
        found += [Score(MACRO_AVERAGE, metric, ALL, mean, error, sum(part.items for part in parts)), *parts]
    return found


def describe_suite(records: "Iterable[Record]") -> str:
    """What the macro-averages of some records are of, in words; empty where none has one."""
    scored = [record for record in records if any(score.eval == MACRO_AVERAGE for score in record.scores)]
    suites = dict.fromkeys(suite_of(record.settings) for record in scored)
    return " or ".join(", ".join(suite) for suite in suites)


def _whole(scores: Iterable[Score], name: str) -> Score | None:
    """A benchmark's score over all its items; null where it is absent or not finite."""
    found = next((score for score in scores if (score.eval, score.source) == (name, ALL)), None)
    return found if found is not None and found.score is not None and math.isfinite(found.score) else None


@cache
def _benchmarks() -> frozenset[str]:
    return frozenset(benchmark_names())
