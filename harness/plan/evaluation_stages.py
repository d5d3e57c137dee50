"""Evaluation stages: what scores a model, one stage an evaluation, and what measures its size, memory and speed.

A suite that is interrupted loses at most one evaluation. A benchmark's score depends on its card and its data, by
content or by hub revision; a held-out score depends on the mixture, and there alone the corpus is part of its identity.

Size, memory and speed depend on a model's shape only, so they are measured on the base it was trained from: one
`measure` stage for each base and number format, shared by every cell of a grid. A score depends on the weights, so
those of each student and teacher are rounded (`quantise`) and scored like any other model.

    evaluate_stages(rows, model)["gsm8k"].key
    deployments(rows, student)["nf4"].evaluations["verified"].key
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.model import QUANTISATIONS
from harness.evals.benchmarks import benchmark_files, benchmark_identity
from harness.models.kinds import model_of
from harness.plan.data_stages import BadRows, CellRows
from harness.plan.graph import Stage
from harness.plan.model_stages import quantise_stage
from harness.store.fingerprint import fingerprint

LENGTHS = {"prompt_tokens": 128, "new_tokens": 32, "batch_size": 1, "repeats": 3}
"""Tokens that are processed and generated in a timed run: one conversation at a time, as on a single user's device."""


def evaluate_stages(rows: CellRows, model: Stage) -> dict[str, Stage]:
    """The stages that score one model, by evaluation. Raises SettingsError where `evals.data_dir` lacks files."""
    return {name: _evaluate_stage(rows, name, model) for name in sorted(set(rows.cell.evals.names))}


def fingerprint_of(stages: Mapping[str, Stage]) -> str:
    """One fingerprint of several stages, by what each is for."""
    return fingerprint({name: stage.fingerprint for name, stage in stages.items()})


def _evaluate_stage(rows: CellRows, name: str, model: Stage) -> Stage:
    cell = rows.cell
    settings: dict[str, Any] = {"eval": name, "limit": cell.evals.limit}
    # the default stays out of the address
    if cell.evals.precision != "fp32":
        settings["precision"] = cell.evals.precision
    # scores of such models were once of answers with their reasoning; other models' addresses stay as they were
    if name != "heldout" and model_of(model.base_model().where["model"]).reasons:
        settings["reasoning"] = "removed"
    if name in rows.benchmarks:
        settings, where = settings | benchmark_identity(cell.evals, name), benchmark_files(cell.evals, name)
        return Stage("evaluate", f"{model.name}-{name}", settings, {"model": model}, where)
    if name == "verified":
        settings["max_new_tokens"] = cell.corpus.max_new_tokens
    inputs = {"model": model, "mixture": rows.mixture}
    return Stage("evaluate", f"{model.name}-{name}", settings, inputs, BadRows.of(cell.corpus).where)


@dataclass(frozen=True)
class Deployment:
    """One model in one number format."""

    measure: Stage
    """Its size, memory and speed, measured on the base model in this format."""
    evaluations: Mapping[str, Stage]
    """`evaluate` stages of its rounded weights, by evaluation; none where weights are not rounded."""

    @property
    def targets(self) -> Iterator[Stage]:
        """Its measurement and its evaluations."""
        yield self.measure
        yield from self.evaluations.values()


def deployments(rows: CellRows, model: Stage) -> dict[str, Deployment]:
    """A trained model in each of the cell's `measure.formats`, by format. Raises as `evaluate_stages`."""
    # a teacher that is rounded already is measured and scored from the weights before rounding, so that nothing is
    # rounded twice
    whole = model.inputs["model"] if model.kind == "quantise" else model
    return {name: _deployment(rows, name, whole) for name in dict.fromkeys(rows.cell.measure.formats)}


def _deployment(rows: CellRows, name: str, model: Stage) -> Deployment:
    base = model.base_model()
    settings: dict[str, Any] = {"format": name, **LENGTHS}
    if name not in QUANTISATIONS:
        return Deployment(Stage("measure", f"{base.name}-{name}", settings, {"model": base}), {})
    settings["precision"] = rows.cell.evals.precision  # of the weights that are not rounded, as when they are scored
    # speed and memory from the rounded base, scores from the rounded weights of this model
    measure = Stage("measure", f"{base.name}-{name}", settings, {"model": quantise_stage(base, name)})
    return Deployment(measure, evaluate_stages(rows, quantise_stage(model, name)))
