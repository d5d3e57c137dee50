"""Metrics: the scores that a grid will have, known from its settings before anything is computed.

A metric is named `<evaluation>.<metric>`, for example `verified.accuracy` or `bbh.exact_match`; an evaluation's name
alone stands for its only metric. Two benchmarks or more also have a macro-average (`results/suite.py`):
`macro_average.rescaled` and `macro_average.raw`. One of the metrics is the grid's primary metric, on which claims,
verdict, decision and crossover rest. It is the setting `primary_metric`, or else, in this order:

1. `verified.accuracy`;
2. the only metric that is better when higher;
3. `macro_average.rescaled`, of two benchmarks or more;
4. without any metric that is better when higher, `heldout.nll`, or the only metric.

    primary_metric(None, grid_metrics(cells))      # "verified.accuracy"
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.config.checks import refuse
from harness.evals import eval_names, higher_is_better, metrics_of_eval
from harness.evals.benchmarks import benchmark_names, load_benchmark

if TYPE_CHECKING:
    from harness.config.cell import Cell

MACRO_AVERAGE, RESCALED, RAW = "macro_average", "rescaled", "raw"
LEAST_BENCHMARKS = 2
"""Fewest benchmarks of which a macro-average is made."""
VERIFIED, HELDOUT = "verified.accuracy", "heldout.nll"


def grid_metrics(cells: "Iterable[Cell]") -> tuple[str, ...]:
    """The metrics that cells will have, in full (a benchmark's with version and hash); those that every cell has.

    Where the cells have none in common, those of any cell. Raises SettingsError for an evaluation whose metrics are not
    known.
    """
    each: dict[str, tuple[str, ...]] = {}
    for cell in cells:
        truth = bool(getattr(cell.corpus, "may_have_truth", True))
        each.setdefault(repr((sorted(set(cell.evals.names)), truth)), _metrics_of(cell.evals.names, truth))
    found = list(dict.fromkeys(metric for metrics in each.values() for metric in metrics))
    shared = [metric for metric in found if all(metric in metrics for metrics in each.values())]
    return tuple(shared or found)


def primary_metric(given: str | None, known: Sequence[str]) -> str:
    """The primary metric in full: the one that is given, else the default.

    Raises SettingsError for one that the grid will not have, and where there is no default.
    """
    return full_name("primary_metric", given, known) if given is not None else _default(known)


def full_name(setting: str, given: Any, known: Sequence[str]) -> str:
    """The one metric of `known` that is named, in full: by its evaluation, by metric too, or with its version.

    Raises SettingsError, with all that are known, where none is named or several.
    """
    found = matching(given, known)
    if len(found) == 1:
        return found[0]
    which = "names several metrics" if found else "is no metric of this grid"
    way_out = "name one of them, or add its evaluation to evals.names"
    raise refuse(setting, given, f"it {which}, which has {', '.join(map(short_name, known)) or 'none'}", way_out)


def matching(given: Any, known: Iterable[str]) -> list[str]:
    """Those of `known` that a name stands for: the full name, it without version and hash, or an evaluation's."""
    return [metric for metric in known if given in (metric, short_name(metric), metric.partition(".")[0])]


def short_name(metric: str) -> str:
    """A metric's full name without the version and hash of a benchmark."""
    return metric.partition("@")[0]


def earlier_default(known: Sequence[str]) -> str | None:
    """The metric on which claims rested before a grid named one: verified accuracy, else the first in the tables."""
    found = sorted((metric for metric in known if not metric.startswith(f"{MACRO_AVERAGE}.")), key=_order)
    return found[0] if found else None


def _order(metric: str) -> tuple[bool, bool, str]:
    return not _higher(metric), metric != VERIFIED, metric


def _metrics_of(names: Iterable[str], truth: bool) -> tuple[str, ...]:
    found, names = [], list(dict.fromkeys(names))
    for name in names:
        if name in eval_names():
            found += [f"{name}.{metric}" for metric in metrics_of_eval(name, truth)]
        else:
            found.append(f"{name}.{load_benchmark(name).column}")
    if len(set(names) & set(benchmark_names())) >= LEAST_BENCHMARKS:
        found += [f"{MACRO_AVERAGE}.{metric}" for metric in (RESCALED, RAW)]
    return tuple(found)


def _default(known: Sequence[str]) -> str:
    if VERIFIED in known:
        return VERIFIED
    rescaled = f"{MACRO_AVERAGE}.{RESCALED}"
    higher = [metric for metric in known if _higher(metric) and not metric.startswith(f"{MACRO_AVERAGE}.")]
    if len(higher) == 1:
        return higher[0]
    if rescaled in known:
        return rescaled
    rest = higher or ([HELDOUT] if HELDOUT in known else list(known))
    if len(rest) == 1:
        return rest[0]
    allowed = f"it must be set, because the grid has {', '.join(map(short_name, rest)) or 'no metric'}"
    raise refuse("primary_metric", None, allowed, "name the one on which claims and verdict rest")


def _higher(metric: str) -> bool:
    return higher_is_better(metric.partition(".")[2])
