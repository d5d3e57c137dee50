"""Tuning: the same number of trials for every arm, on seeds that are not reported, before the grid runs.

Cells that differ only in seeds are one arm at one data fraction. Each arm is tried at the product of its axes; a
trial's score is the NLL of the cell's own validation rows, a mean over the tuning seeds; held-out rows are not read.
While the optimum of some arm lies at the end of an axis, every arm gets one more trial: a step beyond that end, or, for
an arm whose optimum lies inside, between it and its better neighbour.

    tune: {seeds: [100], rounds: 2, axes: {budget.learning_rate: [1e-3, 3e-3]},
           arms: {sft: {method.label_smoothing: [0, 0.1]}, logit_kd: {method.divergence_temperature: [1, 2]}}}
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from harness.config.cell import Cell
from harness.config.checks import SettingsError, check_at_least, check_known, refuse
from harness.data.corpora import corpus_name
from harness.methods import method_name
from harness.store.fingerprint import canonical

SEEDS = ("seed", "data_seed", "train_seed")
DRAWS = ("world_seed", "teacher_seed")
UNTUNABLE = (*SEEDS, *DRAWS, "data_frac", "corpus", "evals")
Values = dict[str, Any]
"""Settings of one trial, by dotted name."""


@dataclass
class Tune:
    """The trials before a grid runs."""

    seeds: list[int] = field(default_factory=lambda: [100])
    """Seeds of the trials; none of them may be a seed of the grid."""
    rounds: int = 2
    """Largest number of further trials per arm while an optimum lies at the end of an axis."""
    axes: dict[str, list[Any]] = field(default_factory=dict)
    """Settings, by dotted name, and the values that every arm tries."""
    arms: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """By method: settings and values for this method alone; they replace those of the same setting in `axes`."""

    def __post_init__(self) -> None:
        check_at_least("tune.rounds", self.rounds, 0)
        if not self.seeds:
            raise refuse("tune.seeds", self.seeds, "trials need a seed", "try tune.seeds=[100]")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Tune":
        """The settings' `tune`. Raises SettingsError for unknown names, fewer than 0 rounds, and no seeds."""
        check_known("tune", settings, cls)
        return cls(**settings)

    def axes_of(self, method: str) -> dict[str, list[Any]]:
        """The axes one arm is tried on, numbers in ascending order. Raises SettingsError where one is no list."""
        own = self.arms.get(method, {})
        axes = {**self.axes, **own}
        for name, values in axes.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                field = f"tune.arms.{method}.{name}" if name in own else f"tune.axes.{name}"
                raise refuse(field, values, "an axis is a list of values", f"try {name}: [{values}]")
        return {name: sorted(values) if _numeric(values) else list(values) for name, values in axes.items()}


@dataclass
class Trial:
    """One choice of settings for an arm."""

    values: Values
    """The settings that are tried, by dotted name."""
    nll: float | None = None
    """NLL of the validation rows in nats per token, a mean over the tuning seeds; null where a cell failed."""
    reason: str = ""
    """The reason why `nll` is null."""


@dataclass
class Search:
    """The trials of one arm at one data fraction, and which of them is best."""

    cell: Cell
    """A cell of the arm, before tuning."""
    axes: dict[str, list[Any]]
    """The settings that are tried and their values in ascending order, extended by further trials."""
    trials: list[Trial] = field(default_factory=list)
    """Every trial so far."""

    @property
    def name(self) -> str:
        """The arm as messages and tables name it."""
        return f"{method_name(self.cell.method)} at data_frac={self.cell.data_frac:g}"

    @property
    def best(self) -> Trial:
        """The trial with the lowest NLL, the first of equals. Raises SettingsError if every trial failed."""
        scored = [trial for trial in self.trials if trial.nll is not None]
        if not scored:
            raise SettingsError(f"no trial of {self.name} has a score: {self.trials[0].reason}")
        return min(scored, key=lambda trial: _or_worst(trial.nll))

    def open_end(self) -> tuple[str, Any] | None:
        """An axis on which the optimum is the last value tried, and the value beyond it; None if there is none.

        An end that the setting itself cannot pass (a weight decay of 0) is no open end.
        """
        for name, values, at in self._numeric_axes():
            ends = {0: (values[1], values[0]), len(values) - 1: (values[-2], values[-1])}
            if at in ends and self._allowed(name, beyond := _beyond(*ends[at])):
                return name, beyond
        return None

    def between(self) -> tuple[str, Any] | None:
        """An axis and a value between the optimum and the better of its neighbours there; None if there is none."""
        for name, values, at in self._numeric_axes():
            # neighbours that no trial has tried at the optimum's other settings come last
            near = [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]
            known = {trial.values[name]: trial.nll for trial in self.trials if self._differs_in(trial, name)}
            near.sort(key=lambda value: _or_worst(known.get(value)))
            # the middle may be rounded onto a value that was tried
            value = _middle(near[0], values[at])
            if value not in values and self._allowed(name, value):
                return name, value
        return None

    def extend(self) -> Trial | None:
        """One more trial: beyond an open end, else between; None where the axes leave no room."""
        found = self.open_end() or self.between()
        if found is None:
            return None
        name, value = found
        trial = Trial({**self.best.values, name: value})
        # the product is not tried again: one more trial an arm, so all arms keep the same number
        self.axes[name] = sorted([*self.axes[name], value])
        self.trials.append(trial)
        return trial

    def _numeric_axes(self) -> Iterator[tuple[str, list[Any], int]]:
        """Axes of two numbers or more, and the optimum's place on each."""
        for name, values in self.axes.items():
            if len(values) > 1 and _numeric(values):
                yield name, values, values.index(self.best.values[name])

    def _differs_in(self, trial: Trial, name: str) -> bool:
        return all(trial.values[other] == value for other, value in self.best.values.items() if other != name)

    def _allowed(self, name: str, value: Any) -> bool:
        try:
            with_values(self.cell, {name: value})
        except SettingsError:
            return False
        return True


@dataclass(frozen=True)
class Tuned:
    """A cell of the grid at the settings chosen for its arm."""

    asked: Cell
    """The cell before tuning, as the grid's settings give it."""
    cell: Cell
    """The same cell with the chosen settings."""
    values: Values
    """The chosen settings, by dotted name."""


Run = Callable[[list[Cell]], Sequence[float | str]]
"""Trains cells; returns each one's validation NLL, or the reason there is none."""


def search(cells: Sequence[Cell], tune: Tune, run: Run) -> list[Search]:
    """Try every arm of the grid; raises SettingsError before anything is trained where arms cannot be compared."""
    searches = plan_searches(cells, tune)
    _try([(one, trial) for one in searches for trial in one.trials], tune, run)
    for _ in range(tune.rounds):
        # every arm gets the trial that one arm needs, so no arm wins by more trials
        if not any(one.open_end() for one in searches):
            break
        _try([(one, trial) for one in searches if (trial := one.extend())], tune, run)
    return searches


def plan_searches(cells: Sequence[Cell], tune: Tune) -> list[Search]:
    """The first trials of every arm.

    Raises SettingsError for a seed that the grid reports, prompts without answers, a method that trains nothing, an
    arm that is not in the grid, different numbers of trials, a single trial, and values that a setting cannot take.
    """
    used = {seed for cell in cells for seed in (cell.seed, cell.data_seed, cell.train_seed) if seed is not None}
    # trials on a reported seed would choose settings by the rows and draws that are reported
    if shared := sorted(used & set(tune.seeds)):
        raise refuse("tune.seeds", tune.seeds, f"the grid reports seed {shared[0]}", "tune on seeds of their own")
    if any(cell.corpus.answers == "none" for cell in cells):
        reason = "a trial is scored by the NLL of validation answers, and unlabelled prompts have none"
        raise refuse("corpus.answers", "none", reason, "tune with corpus.answers=given and set what was chosen")
    if idle := [method_name(cell.method) for cell in cells if not cell.method.phases()]:
        raise refuse("method", idle[0], "it trains nothing, so it has nothing to tune", "leave it out of the grid")
    methods = {method_name(cell.method) for cell in cells}
    if unknown := sorted(set(tune.arms) - methods):
        raise refuse("tune.arms", unknown[0], f"the grid's methods are {', '.join(sorted(methods))}")
    arms: dict[str, Search] = {}
    for cell in cells:
        arms.setdefault(_arm(cell), Search(cell, tune.axes_of(method_name(cell.method))))
    searches = list(arms.values())
    for one in searches:
        one.trials = [
            Trial(dict(zip(one.axes, values, strict=True))) for values in itertools.product(*one.axes.values())
        ]
    # compared after the product: arms may have different axes with as many points
    counts = {method_name(one.cell.method): len(one.trials) for one in searches}
    if len(set(counts.values())) > 1:
        trials = ", ".join(f"{method} {count}" for method, count in sorted(counts.items()))
        raise refuse("tune", trials, "every arm needs the same number of trials", "give each arm as many values")
    if counts and next(iter(counts.values())) < 2:
        raise refuse("tune.axes", tune.axes, "there is nothing to choose from", "give a setting two values or more")
    for one in searches:
        for trial in one.trials:
            # made and thrown away: a value that cannot be set is refused before anything is trained
            with_values(one.cell, trial.values)
    return searches


def tuned_cells(cells: Sequence[Cell], searches: Iterable[Search]) -> list[Tuned]:
    """Every cell of the grid at the settings chosen for its arm. Raises SettingsError where two become one."""
    chosen = {_arm(one.cell): one.best.values for one in searches}
    found = [Tuned(cell, with_values(cell, chosen[_arm(cell)]), chosen[_arm(cell)]) for cell in cells]
    seen: dict[str, Tuned] = {}
    for one in found:
        # two cells that differed by a tuned setting alone have become one
        other = seen.setdefault(canonical(_named(one.cell)), one)
        if other.asked != one.asked:
            axes = ", ".join(sorted(one.values))
            raise refuse("tune", axes, "the grid sweeps a setting that is tuned too", "do one or the other")
    return found


def trial_cell(cell: Cell, values: Values, seed: int) -> Cell:
    """The cell a trial trains, other rows and other draws than any the grid reports. Raises as `with_values`."""
    return replace(with_values(cell, values), seed=seed, data_seed=None, train_seed=None)


def with_values(cell: Cell, values: Values) -> Cell:
    """A copy of the cell with settings, by dotted name, put in place.

    Raises SettingsError for a setting that does not exist or may not be tuned, and for a value it cannot take.
    """
    for name, value in values.items():
        if name.partition(".")[0] in UNTUNABLE:
            raise refuse("tune", name, "the setting defines what is compared, so no arm may choose it")
        cell = _set(cell, name, name.split("."), value)
    return cell


def _set(node: Any, name: str, path: list[str], value: Any) -> Any:
    known = [one.name for one in fields(node)] if is_dataclass(node) else []
    if path[0] not in known:
        raise refuse("tune", name, f"there is no such setting; there is {', '.join(known) or 'none'}")
    inner = value if len(path) == 1 else _set(getattr(node, path[0]), name, path[1:], value)
    return replace(node, **{path[0]: inner})


def _try(wanted: list[tuple[Search, Trial]], tune: Tune, run: Run) -> None:
    """Train the trials, all seeds of all arms in one run, and keep their validation NLL."""
    cells = [trial_cell(one.cell, trial.values, seed) for one, trial in wanted for seed in tune.seeds]
    found = run(cells)
    for place, (_, trial) in enumerate(wanted):
        figures = [found[place * len(tune.seeds) + index] for index in range(len(tune.seeds))]
        # a mean over the seeds that succeeded would compare trials on different seeds
        reasons = [figure for figure in figures if isinstance(figure, str)]
        if reasons:
            trial.reason = reasons[0]
        else:
            trial.nll = math.fsum(figure for figure in figures if not isinstance(figure, str)) / len(figures)


def _arm(cell: Cell) -> str:
    """A key that cells of one arm at one fraction share; several replicates are tuned in the first."""
    named = _named(cell)
    return canonical({name: value for name, value in named.items() if name not in SEEDS + DRAWS})


def _named(cell: Cell) -> dict[str, Any]:
    """A cell's settings with the kinds of method and corpus named."""
    kinds = {"method": method_name(cell.method), "corpus": corpus_name(cell.corpus)}
    return {one.name: getattr(cell, one.name) for one in fields(cell)} | {"kinds": kinds}


def _or_worst(nll: float | None) -> float:
    return math.inf if nll is None else nll


def _numeric(values: Sequence[Any]) -> bool:
    # a bool is an int to isinstance, and a switch has no value beyond it
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _beyond(inner: float, end: float) -> float:
    """The next value after `end`, as far from it as `inner` is: by ratio, or by difference where one is 0."""
    # settings such as a learning rate are tried on a logarithmic scale
    value = end * end / inner if inner > 0 and end > 0 else 2 * end - inner
    return _like(value, inner, end)


def _middle(one: float, other: float) -> float:
    return _like(math.sqrt(one * other) if one > 0 and other > 0 else (one + other) / 2, one, other)


def _like(value: float, *examples: float) -> float:
    """Whole numbers stay whole; others are rounded to three digits, as a person would write them."""
    return round(value) if all(isinstance(one, int) for one in examples) else float(f"{value:.3g}")
