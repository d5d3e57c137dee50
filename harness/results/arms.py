"""Arms: what a figure draws as one point, everything of a cell but its seeds; and the metric it shows.

Sorts records, which hold names, settings and scores; `paired_gains.py` brings the cells of an arm together.

    arms = by_arm(records)
    arms[arm.partner]      # the SFT cells that an arm is compared with
"""

import json
import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.config.checks import SettingsError
from harness.evals import ALL, higher_is_better
from harness.plan.metrics import RESCALED
from harness.results.records import Record

# what `Arm` or `seeds_of` has already, and how a grid is run; all other settings can tell two arms apart
NOT_SETTINGS = (
    "method",
    "seed",
    "data_seed",
    "train_seed",
    "world_seed",
    "teacher_seed",
    "data_frac",
    "student.name",
    "teacher.name",
    "grid",
    "store",
    "launch",
    "machine",
    "retry",
    "sweep",
    "experiments",
)


class Arm(NamedTuple):
    """Names of one arm; world and teacher seed are null where an arm spans several replicates."""

    role: str
    method: str
    teacher: str | None
    student: str
    corpus: str
    budget: str
    variant: str
    data_frac: float | None
    world_seed: int | None
    teacher_seed: int | None

    @property
    def partner(self) -> "Arm":
        """The SFT arm this one is compared with."""
        # `world_seed` stays: SFT of another replicate was trained on another corpus
        return self._replace(role="student", method="sft", teacher=None, teacher_seed=None)


class Metric(NamedTuple):
    """One column of scores: evaluation, metric and source (`all` or one name)."""

    eval: str
    metric: str
    source: str = ALL

    @classmethod
    def named(cls, name: str) -> "Metric":
        """Of all items, from a full name (`plan/metrics.py`), e.g. `verified.accuracy`."""
        evaluation, _, metric = name.partition(".")
        return cls(evaluation, metric)

    @property
    def name(self) -> str:
        """The full name, which `named` reads."""
        return f"{self.eval}.{self.metric}"

    @property
    def label(self) -> str:
        """How outputs call it, e.g. `verified accuracy`."""
        return f"{self.eval} {self.metric}".strip()

    @property
    def higher_is_better(self) -> bool:
        """Whether a positive gain is an improvement; losses per token are better when lower."""
        return higher_is_better(self.metric)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and largest value that an item's score may have; null for a loss, which has none."""
        if not self.higher_is_better:
            return None
        # rescaled, an item is at least -1: no benchmark's floor is above one half
        return (-1.0, 1.0) if self.metric == RESCALED else (0.0, 1.0)


def by_arm(records: Iterable[Record]) -> dict[Arm, list[Record]]:
    """Cells and reference models per arm, one of each address, in the order of first sight.

    Cells of one seed that differ in a setting no name shows get it as `variant` (a teacher's setting: in the teacher's
    name), over all methods, so an arm is never paired with SFT cells that were trained or scored in another way.
    Several teachers of one corpus share SFT cells and rows: they are not replicates, and have different names.
    Raises SettingsError where even the settings are the same.
    """
    # a cell that several grids share has a record in each, and is one observation
    unique = list({(r.cell, r.role): r for r in records}.values())
    hidden = _hidden_settings(unique)
    # teachers of one world that differ in their seed are no replicates: the seed goes into their name
    drawn = {(r.teacher, r.world_seed, r.teacher_seed) for r in unique if r.teacher}
    taught = Counter((teacher, world) for teacher, world, _ in drawn)
    several = {teacher for (teacher, _), teacher_seeds in taught.items() if teacher_seeds > 1}
    arms: dict[Arm, list[Record]] = {}
    for record in unique:
        arms.setdefault(_arm(record, hidden, several), []).append(record)
    for arm, cells in arms.items():
        seeds = [seeds_of(cell) for cell in cells]
        # `paired_gains.scores` keys cells by their seeds, so the second would replace the first unseen
        if len(set(seeds)) < len(seeds):
            raise SettingsError(
                f"{arm.method} ({arm.teacher or arm.student}) at data_frac={arm.data_frac} has two cells of one seed "
                "and the same settings. Read the records of one grid, written by one version of the code."
            )
    return arms


def seeds_of(record: Record) -> tuple[int, int]:
    """(data_seed, train_seed): what differs between two cells of an arm."""
    return int(record.data_seed or 0), int(record.train_seed or 0)


def metrics_of(records: Iterable[Record]) -> list[Metric]:
    """Every evaluation, metric and source that was scored, in the order of first sight."""
    return list({Metric(s.eval, s.metric, s.source): None for r in records for s in r.scores})


def score_of(record: Record, metric: Metric) -> float | None:
    """A finished record's score, or null."""
    if record.status != "done":
        return None
    for one in record.scores:
        if (one.eval, one.metric, one.source) == tuple(metric):
            # one cell with NaN or infinity would make the mean of its arm the same
            return None if one.score is None or not math.isfinite(one.score) else float(one.score)
    return None


def diverged(record: Record) -> bool:
    """Whether a student's own training ended in numbers that are not finite; such a cell stays in the analysis.

    A student whose teacher or base diverged was never trained as it should have been, and has no score.
    """
    own = record.role == "student" and record.blamed != "input"
    return own and record.status == "failed" and record.failure_class == "diverged"


def name_diverged(cells: Sequence[Record], metric: Metric) -> str:
    """Which seeds of an arm diverged and what they count as, in words; empty if none did."""
    several = len({cell.world_seed for cell in cells}) > 1
    names = [
        f"{cell.seed}" + (f" of replicate {cell.world_seed}" if several else "") for cell in cells if diverged(cell)
    ]
    if not names:
        return ""
    counted = "counted as 0" if metric.higher_is_better else "left out, because a loss has no floor"
    return f"seed{'s' if len(names) > 1 else ''} {', '.join(names)} diverged, {counted}"


def name_tuned(cells: Iterable[Record]) -> str:
    """The settings that trials chose for an arm, in words; empty where nothing was tuned."""
    values: Mapping[str, Any] = next((cell.tuned for cell in cells if cell.tuned), {})
    return ", ".join(f"{name.rpartition('.')[2]}={value} (tuned)" for name, value in values.items())


def why_unpaired(arm: Arm, arms: Iterable[Arm]) -> str:
    """Why an arm has no gain, in words: SFT ran with other settings, did not run, or ran with other seeds."""
    others = {other.variant for other in arms if other._replace(variant=arm.variant) == arm.partner}
    if arm.variant in others:
        return "no gain: no seed in common with SFT"
    return f"no gain: SFT ran with {' and '.join(sorted(others))}" if others else "no gain: no SFT cell to pair with"


def _arm(record: Record, hidden: Container[str] = (), several: Container[str | None] = ()) -> Arm:
    """The arm of one record, with the settings that no name shows."""
    telling = {key: value for key, value in sorted(_telling(record).items()) if key in hidden}
    teacher = record.teacher
    if teacher:
        of_teacher = [f"seed={record.teacher_seed}"] * (teacher in several)
        of_teacher += [f"{k.removeprefix('teacher.')}={v}" for k, v in telling.items() if k.startswith("teacher.")]
        teacher += f"[{', '.join(of_teacher)}]" if of_teacher else ""
    return Arm(
        record.role,
        record.method,
        teacher,
        record.student,
        record.corpus,
        record.budget,
        ", ".join(f"{key}={value}" for key, value in telling.items() if not key.startswith("teacher.")),
        record.data_frac,
        record.world_seed,
        record.teacher_seed if teacher else None,
    )


def _hidden_settings(records: list[Record]) -> set[str]:
    """Settings in which cells of one seed differ that ought to agree.

    A teacher's settings ought to agree within an arm, all others between a method and the SFT it is paired with.
    """
    groups: dict[Any, list[dict[str, str]]] = {}
    for record in records:
        arm, telling = _arm(record), _telling(record)
        taught = {key: value for key, value in telling.items() if key.startswith("teacher.")}
        shared = {key: value for key, value in telling.items() if key not in taught}
        # a method's cells and SFT's come into one group, so a setting in which the two differ is found
        peers = arm.partner if arm.role == "student" else arm
        groups.setdefault(("teacher", arm, seeds_of(record)), []).append(taught)
        groups.setdefault(("shared", peers, seeds_of(record)), []).append(shared)
    return {
        key for group in groups.values() for one in group for key in one if any(o.get(key) != one[key] for o in group)
    }


def _telling(record: Record) -> dict[str, str]:
    """Settings that can tell two records of the same names apart; of a reference model, only its own.

    A setting that trials chose is left out: the arm is compared with SFT at the settings of SFT's own trials.
    """
    flat = {key: value for key, value in _flat(record.settings).items() if not _chosen(record, key)}
    own = {"base": ("student.", "evals."), "teacher": ("teacher.", "evals.")}.get(record.role, ("",))
    # `teacher` without a dot is `self` or null, which the teacher's own column shows
    named = {key for key in flat if any(key == name or key.startswith(f"{name}.") for name in NOT_SETTINGS)}
    return {key: value for key, value in flat.items() if key not in named | {"teacher"} and key.startswith(own)}


def _chosen(record: Record, key: str) -> bool:
    return key in record.tuned


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as dotted names and text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # as text, numbers and lists can be compared and written into a name
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
