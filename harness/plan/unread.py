"""Unread: settings that a person set or swept and no arm of the grid reads.

unread_lines(composed, Plan.of(composed.cells))    # "signal.kind is set, and no arm of the grid reads it"
"""

from collections.abc import Iterator

from harness.plan.cell_plan import CellPlan, Plan
from harness.plan.compose import Composed


def unread_lines(composed: Composed, plan: Plan) -> Iterator[str]:
    """A sentence for every such setting; `plan` is that of `composed.cells`."""
    for key in _swept(composed):
        if _changes_nothing(composed, plan, key):
            yield f"{key} is swept, and no arm of the grid reads it: its cells are the same"
    for key, value in composed.given.items():
        if value != "none" and not any(_reads(cell, key) for cell in plan.cells):
            yield f"{key} is set, and no arm of the grid reads it"


def _swept(composed: Composed) -> list[str]:
    """The settings of which the points have several values."""
    values: dict[str, set[str]] = {}
    for point in composed.points:
        for key, value in point.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, found in values.items() if len(found) > 1]


def _changes_nothing(composed: Composed, plan: Plan, key: str) -> bool:
    """Whether points that differ in this setting alone are always one cell."""
    cells: dict[str, set[str]] = {}
    points: dict[str, int] = {}
    for point, fingerprint in zip(composed.points, plan.requested, strict=True):
        rest = repr(sorted((name, repr(value)) for name, value in point.items() if name != key))
        cells.setdefault(rest, set()).add(fingerprint)
        points[rest] = points.get(rest, 0) + (key in point)
    compared = [found for rest, found in cells.items() if points[rest] > 1]
    return bool(compared) and all(len(found) == 1 for found in compared)


def _reads(plan: CellPlan, key: str) -> bool:
    """Whether the cell reads a setting of its teacher or of the teacher's signal; any other counts as read."""
    part, _, name = key.partition(".")
    if part in ("teacher", "teacher_seed"):
        return plan.taught_by == "given"
    if part != "signal":
        return True
    if name == "kind":
        return any(phase.normal().queries_teacher for phase in plan.cell.method.phases())
    return any(name in stage.settings.get("signal", {}) for stage in (*plan.train, *plan.teaching))
