"""Arms: what a figure draws as one point, everything of a cell but its seeds; and the metric it shows.

Sorts records, which hold names, settings and scores; `gains.py` brings the cells of an arm together.

    arms = by_arm(records)
    arms[arm.partner]      # the SFT cells that an arm is compared with
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from harness.config import SettingsError
from harness.evals import ALL

Record = Mapping[str, Any]
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
    """Names of one arm; world and teacher seed are null where an arm spans several draws."""

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
        return self._replace(role="student", method="sft", teacher=None, teacher_seed=None)


class Metric(NamedTuple):
    """One column of scores: evaluation, metric and source (`all` or one name)."""

    eval: str
    metric: str
    source: str = ALL

    @property
    def higher_is_better(self) -> bool:
        """Whether a positive gain is an improvement; losses per token are better when lower."""
        return not any(word in self.metric for word in ("nll", "loss", "perplexity"))


def by_arm(records: Iterable[Record]) -> dict[Arm, list[Record]]:
    """Cells and reference models per arm, one of each address, in the order of first sight.

    Cells of one arm and seed that still differ differ in a setting that no name shows: it becomes part of
    the arm's `variant` (or of the teacher's name). Raises SettingsError where even the settings are the same.
    """
    unique = list({(r["cell"], r["role"]): r for r in records}.values())
    hidden = _hidden_settings(unique)
    arms: dict[Arm, list[Record]] = {}
    for record in unique:
        arms.setdefault(_arm(record, hidden), []).append(record)
    for arm, cells in arms.items():
        seeds = [seeds_of(cell) for cell in cells if cell["role"] == "student"]
        if len(set(seeds)) < len(seeds):
            raise SettingsError(
                f"{arm.method} at data_frac={arm.data_frac} has two cells of one seed and the same settings; "
                "read the records of one grid, or of one version of the code."
            )
    return arms


def seeds_of(record: Record) -> tuple[int, int]:
    """What tells two cells of an arm apart."""
    return int(record.get("data_seed") or 0), int(record.get("train_seed") or 0)


def metrics_of(records: Iterable[Record]) -> list[Metric]:
    """Every evaluation, metric and source that was scored, in the order of first sight."""
    return list({Metric(s["eval"], s["metric"], s["source"]): None for r in records for s in r.get("scores") or ()})


def score_of(record: Record, metric: Metric) -> float | None:
    """A finished record's score, or null."""
    if record["status"] != "done":
        return None
    for row in record.get("scores") or ():
        if (row["eval"], row["metric"], row["source"]) == tuple(metric):
            return None if row["score"] is None or not math.isfinite(row["score"]) else float(row["score"])
    return None


def _arm(record: Record, hidden: set[str]) -> Arm:
    """The arm of one record, with the settings that no name shows."""
    flat = _flat(record.get("settings") or {}) if hidden else {}
    shown = {key: f"{key}={flat[key]}" for key in sorted(hidden) if key in flat and record["role"] == "student"}
    teacher = record.get("teacher")
    of_teacher = [text.removeprefix("teacher.") for key, text in shown.items() if key.startswith("teacher.")]
    if teacher and of_teacher and record["role"] == "student":
        teacher = f"{teacher}[{', '.join(of_teacher)}]"
    return Arm(
        record["role"],
        record.get("method") or record["role"],
        teacher,
        record.get("student") or "",
        record.get("corpus") or "",
        record.get("budget") or "",
        ", ".join(text for key, text in shown.items() if not key.startswith("teacher.")),
        record.get("data_frac"),
        record.get("world_seed"),
        record.get("teacher_seed") if teacher else None,
    )


def _hidden_settings(records: list[Record]) -> set[str]:
    """Settings in which cells of one arm and seed differ."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        if record["role"] == "student":
            groups.setdefault((_arm(record, set()), seeds_of(record)), []).append(record)
    hidden = set()
    for group in groups.values():
        flats = [_flat(record.get("settings") or {}) for record in group if len(group) > 1]
        hidden |= {key for flat in flats for key in flat if any(other.get(key) != flat[key] for other in flats)}
    return {key for key in hidden if not any(key == name or key.startswith(f"{name}.") for name in NOT_SETTINGS)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as dotted names and text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
