"""Deployment: what is measured of the models somebody may run, and scored once more where weights are rounded.

Size, memory and speed depend on a model's shape only, so they are measured on the base it was trained from: one
`measure` stage for each base and number format, shared by every cell of a grid. A score depends on the weights, so
those of each student and teacher are rounded (`quantise`) and scored like any other model.

    deployments(cell, student, mixture)["nf4"].evaluations["verified"].key
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.cell import Cell
from harness.config.model import QUANTISATIONS
from harness.evaluations import evaluate_stages
from harness.stage import Stage
from harness.teaching import quantise_stage

LENGTHS = {"prompt_tokens": 128, "new_tokens": 32, "batch_size": 1, "repeats": 3}
"""What is read and written while the clock runs: one conversation, as on a device of one's own."""


@dataclass(frozen=True)
class Deployment:
    """One model in one number format."""

    measure: Stage
    evaluations: Mapping[str, Stage]
    """`evaluate` stages of its rounded weights, by evaluation; none where weights are not rounded."""

    @property
    def targets(self) -> Iterator[Stage]:
        """All that is made for it."""
        yield self.measure
        yield from self.evaluations.values()


def deployments(cell: Cell, model: Stage, mixture: Stage) -> dict[str, Deployment]:
    """What is made of a trained model for each of the cell's `measure.formats`."""
    whole = model.inputs["model"] if model.kind == "quantise" else model
    return {name: _deployment(cell, name, whole, mixture) for name in dict.fromkeys(cell.measure.formats)}


def _deployment(cell: Cell, name: str, model: Stage, mixture: Stage) -> Deployment:
    base = model.adopted()
    settings: dict[str, Any] = {"format": name, **LENGTHS}
    if name not in QUANTISATIONS:
        return Deployment(Stage("measure", f"{base.name}-{name}", settings, {"model": base}), {})
    settings["precision"] = cell.evals.precision  # of what is not rounded, as it is scored
    measure = Stage("measure", f"{base.name}-{name}", settings, {"model": quantise_stage(base, name)})
    return Deployment(measure, evaluate_stages(cell, quantise_stage(model, name), mixture))
