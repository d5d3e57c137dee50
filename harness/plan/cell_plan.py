"""Plan: from cells to the stages that make them, without repeats and without running anything.

A stage's identity is its kind, version, settings and its inputs' identities. Two cells that need the
same stage share its address, so an SFT and a KD cell at 1 % train on one subset, and a teacher is made
once for the whole grid. Nothing here imports torch or reads data.

    plan = Plan.of([cell_a, cell_b]); [stage.address for stage in plan.stages]
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase, spans_of_own_rows
from harness.config.teacher_signal import check_signal
from harness.methods import method_name
from harness.models.kinds import ServedModel, model_of
from harness.plan.data_stages import CellRows
from harness.plan.evaluation_stages import Deployment, deployments, evaluate_stages, fingerprint_of
from harness.plan.graph import Stage
from harness.plan.model_stages import base_stage, teacher_stage, train_phase
from harness.plan.models_of_grid import check_models
from harness.plan.several import check_different, check_several, composition, each_teachers_rows, several_signal
from harness.plan.signal_stages import check_answers, phase_signal
from harness.store.fingerprint import fingerprint


@dataclass(frozen=True)
class CellPlan:
    """The stages of one cell, by their purpose."""

    cell: Cell
    """The cell, with every seed filled in."""
    train: tuple[Stage, ...]
    """A stage for each phase of its method; none where nothing is trained."""
    evaluations: Mapping[str, Stage]
    """The student's `evaluate` stages by evaluation; none for a trial, which is trained only."""
    teaching: tuple[Stage, ...]
    """The teacher's signal, prepared before training: labels, caches, synthetic rows."""
    taught_by: str | None
    """`given` (the cell's teacher), `self` (its own fine-tuned student) or None."""
    teacher: Stage | None
    """The teacher after its fine-tuning; None where there are several."""
    references: Mapping[str, Mapping[str, Stage]]
    """The same of the models the student is compared with: base, and teacher where there is one."""
    deployments: Mapping[str, Mapping[str, Deployment]] = field(default_factory=dict)
    """Measured models, by role (student, teacher) and number format; no part of the cell's identity."""
    overlaps: tuple[Stage, ...] = ()
    """Decontamination: the rows that student and teacher train on are compared with the scored items."""
    members: tuple[Stage, ...] = ()
    """The teachers after their fine-tuning, where there are several."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its student's evaluations; a trial's is that of its trained student."""
        return fingerprint_of(self.evaluations) if self.evaluations else self.train[-1].fingerprint

    @property
    def stored_signal(self) -> bool:
        """Whether a phase reads the teacher's logits from a cache."""
        return any(stage.settings.get("signal", {}).get("kind", "live") != "live" for stage in self.train)

    @property
    def teacher_name(self) -> str | None:
        """How tables call the teacher: its name, `self`, or None."""
        return self.cell.teacher.name if self.taught_by == "given" else self.taught_by

    @property
    def targets(self) -> tuple[Stage, ...]:
        """The stages that the cell is planned for: evaluations of its student and of its references, overlaps, and
        measures."""
        compared = (stage for evaluations in self.references.values() for stage in evaluations.values())
        measured = (one for formats in self.deployments.values() for one in formats.values())
        taken = (stage for one in measured for stage in one.targets)
        return (*(self.evaluations.values() or self.train[-1:]), *compared, *self.overlaps, *taken)

    def making_teacher(self) -> Iterator[Stage]:
        """The stages that make the teacher; for the teacher `self` its training alone, as its base is the student's."""
        for member in self.members:
            yield from member.ancestry()
        if self.teacher is not None:
            yield from self.teacher.ancestry() if self.taught_by == "given" else (self.teacher,)

    def stages(self) -> Iterator[Stage]:
        """Every stage of the cell, references included."""
        for stage in self.targets:
            yield from stage.ancestry()


@dataclass(frozen=True)
class Plan:
    """The union of cell plans: each stage once, inputs before those that use them."""

    cells: tuple[CellPlan, ...]
    stages: tuple[Stage, ...]
    requested: tuple[str, ...] = ()
    """The fingerprint of every cell that was asked for, in their order; repeats stay."""

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "Plan":
        """Plan the cells; cells with one identity (SFT under several teachers) become one.

        Raises as `plan_cell` and `check_models`.
        """
        cells = list(cells)
        check_models(cells)  # an identity is read from a model's files, which have to be whole
        return cls.union(map(plan_cell, cells))

    @classmethod
    def union(cls, plans: Iterable[CellPlan]) -> "Plan":
        """The plan of cells that are planned already."""
        # a dict keeps the order of its keys, and `stages()` yields inputs before those that use them
        asked = [(plan.fingerprint, plan) for plan in plans]
        planned = dict(asked)
        stages: dict[str, Stage] = {}
        for plan in planned.values():
            for stage in plan.stages():
                stages.setdefault(stage.key, stage)
        return cls(tuple(planned.values()), tuple(stages.values()), tuple(name for name, _ in asked))

    @cached_property
    def targets(self) -> dict[str, Stage]:
        """The stages that the cells are planned for, by key."""
        return {target.key: target for cell in self.cells for target in cell.targets}

    @cached_property
    def teachers(self) -> frozenset[str]:
        """Keys of the cells' given teachers."""
        given = (
            teacher for cell in self.cells if cell.taught_by == "given" for teacher in (cell.teacher, *cell.members)
        )
        return frozenset(teacher.key for teacher in given if teacher is not None)

    @property
    def name(self) -> str:
        """A short hash of the cells: the name of a grid without one."""
        return "grid-" + fingerprint(sorted(plan.fingerprint for plan in self.cells))[:10]


def plan_cell(cell: Cell) -> CellPlan:
    """The stages of one cell: rows, models, the teacher's signal, phases, evaluations, deployments.

    Raises SettingsError for what cannot be planned, e.g. a method without its teacher.
    """
    # seeds first: stages hash the values in force, so a cell that sets a default itself has the same addresses
    cell = cell.with_seeds()
    method = method_name(cell.method)
    # normal form, so that phases that train the same way share an address
    phases = tuple(phase.normal() for phase in cell.method.phases())
    if cell.budget.counts_own_rows:
        phases = spans_of_own_rows(phases)
    taught_by = check_phases(cell, phases)

    base = base_stage(cell, cell.student)
    rows = CellRows.of(cell, base)
    teacher, members = None, list[Stage]()
    if taught_by == "given" and cell.teacher.several:
        members = [teacher_stage(own) for own in each_teachers_rows(rows)]
        check_different(cell, members)
    elif taught_by == "given":
        teacher = teacher_stage(rows)
    elif taught_by == "self":  # Born-Again: the student that plain fine-tuning makes of the same cell
        teacher = train_phase(cell, TrainingPhase(), 0, {"subset": rows.subset, "start": base}, "sft")

    # all signals before any training stage: what cannot be planned is refused here
    signals = [
        several_signal(rows, phase, members) if members else phase_signal(rows, phase, teacher) for phase in phases
    ]
    train: list[Stage] = []
    for index, (phase, signal) in enumerate(zip(phases, signals, strict=True)):
        start = train[-1] if train else base
        inputs = {"subset": rows.subset, "start": start, **signal.inputs}
        taught = composition(cell, phase) if members and phase.uses_teacher else None
        train.append(train_phase(cell, phase, index, inputs, method, taught))

    student = train[-1] if train else base
    references, deployed = {"base": base}, {"student": student}
    # a served teacher has no weights here to be loaded and scored
    if teacher is not None and taught_by == "given" and model_of(cell.teacher).weights_here:
        references["teacher"] = deployed["teacher"] = teacher
    for place, (member, one) in enumerate(zip(members, cell.teacher.members, strict=False)):
        if model_of(one.teacher).weights_here:
            references[f"teacher:{place}"] = member  # scored, and measured where it teaches alone
    return CellPlan(
        cell=cell,
        train=tuple(train),
        evaluations=evaluate_stages(rows, student),
        teaching=tuple(stage for signal in signals for stage in signal.prepared.values()),
        taught_by=taught_by,
        teacher=teacher,
        references={role: evaluate_stages(rows, model) for role, model in references.items()},
        deployments={role: deployments(rows, model) for role, model in deployed.items()},
        overlaps=rows.overlaps(train),
        members=tuple(members),
    )


def check_phases(cell: Cell, phases: tuple[TrainingPhase, ...]) -> str | None:
    """The teacher that the phases need: `given` (the cell's), `self` (its own fine-tuned student) or None.

    Raises SettingsError where it is missing, cannot give the signal, or where a phase reads answers that prompts
    do not have.
    """
    found = {phase.teacher for phase in phases if phase.uses_teacher}
    assert len(found) <= 1, "one teacher for all phases of a recipe"
    # the teacher `self` is made here from the cell, so only a given one can be missing
    if "given" in found and cell.teacher.kind == "none":
        raise refuse(
            "teacher",
            cell.teacher.name,
            f"method={method_name(cell.method)} needs a teacher",
            "choose one, e.g. teacher=weak, or method=sft",
        )
    if "given" in found and cell.teacher.several:
        check_several(cell, phases)
    for phase in phases:
        alone = phase.teacher == "given" and not cell.teacher.several
        served = alone and isinstance(model_of(cell.teacher), ServedModel)
        check_signal(cell.signal, phase, served)
    check_answers(cell, phases)
    return next(iter(found), None)
