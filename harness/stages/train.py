"""Stage `train`: one training phase of a recipe, from a start model to a trained one.

Which batches it visits follows from the budget alone: the visiting order of the whole budget is cut by the
phase's span, so a warm-up and its sequel together visit exactly the batches that `sft` visits. Under
`budget.epochs_of=phase` a phase on synthetic rows counts epochs of these rows instead. Which sequences stand
in for the rows (teacher's answers, synthetic rows) and what the loss compares comes from the recipe. A missing
teacher or missing answers are an error, never a fallback.

    model.safetensors, tokenizer.json, ...   the trained model, a Hugging Face folder
    log.jsonl                                a line a step
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.machine import Machine
from harness.config.recipe import CROSS, TrainingPhase
from harness.config.teacher_signal import POLICY_GRADIENT, Signal
from harness.data.chat import end_of_turn_id
from harness.data.sequences import Rows, draw_seed, mixed_visits, steps_on, visiting_order, visits
from harness.models.diverged import DivergedError, TeacherDivergedError
from harness.models.files import SERVER
from harness.models.finite import check_weights, explosion_warnings
from harness.models.fsdp import full_tensors, uses_fsdp
from harness.models.loading import count_frozen, count_parameters, device_of, load_model, load_tokenizer, save_model
from harness.models.lora import merged, with_adapters
from harness.runtime.processes import process_rank
from harness.stages.answers import answered_rows, cut_answers
from harness.teachers.served_signal import ServedSignal
from harness.teachers.several import Assignment, SeveralCaches, SeveralTeachers
from harness.teachers.signals import CachedTeacher, LiveTeacher
from harness.teachers.teacher import ServedTeacher, open_teacher
from harness.training.flop_budget import Sizes, off_budget, steps_for, visit_flops
from harness.training.losses.alignment import Coverage
from harness.training.losses.cross_tokenizer import CrossTeacher
from harness.training.nll import mean_nll
from harness.training.trainer import TrainingData, TrainingSettings, fit
from harness.training.training_report import TrainingReport

COUNTS = ("steps", "student_steps", "read_tokens")
COSTS = ("trained_tokens", "generated_tokens", "teacher_tokens", "flops", "teacher_flops", "teacher_seconds")
MEMBERS_ROLES = ("teacher", "teacher_reading", "labels", "cache")
"""Roles of inputs that each of several teachers has of its own."""
LEAST_ALIGNED = 0.5
"""Least share of the scored tokens that has to be aligned with the tokens of a teacher with another tokenizer."""

Teaching = LiveTeacher | ServedSignal | CachedTeacher | CrossTeacher | SeveralTeachers | SeveralCaches
"""What a phase may train on the signal of."""


def make_train(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Train and save a model; returns cost, counts, the validation NLL and warnings.

    `settings`: `stage` (a TrainingPhase's values), `budget`, `seed`, `index` (place in the recipe), `loss_on`,
    `max_new_tokens` where the student generates, and `lora` where adapters are trained, to be merged at the end.
    `inputs`: `subset`, `start`, and where the phase needs them `teacher` (a model folder), `teacher_rows` (the
    subset as a teacher with a tokenizer of its own renders it), `teacher_reading` (the subset in the template of a
    teacher with the student's vocabulary), `labels`, `synthetic`. `rendering` is `student` where such a teacher reads
    the student's rendering. Of several teachers, `teachers` says which of them teaches what (`plan/several.py`), inputs
    have a member's place in their role (`teacher:0`), and `mixture` has the ids and sources of the rows.
    `metrics["validation_nll"]` is in nats per token of the cell's own validation rows, the same for every
    objective. Raises DivergedError where the loss, the weights or what they give are not numbers, ValueError where an
    input or the data's answers are missing, SettingsError where teacher and student do not fit or a FLOP budget does
    not pay for one step, Preempted where the process has to stop.
    """
    phase = TrainingPhase.of(settings["stage"])
    budget, seed = Budget(**settings["budget"]), settings["seed"]
    subset = load_from_disk(inputs["subset"] / "train")
    rows = Rows(subset, settings["loss_on"])
    if phase.reads_answers and not rows.response_tokens.all():
        raise ValueError(f"{phase.sequences} x {phase.divergence} reads the data's answers and some rows have none")
    device = device_of(machine)
    tokenizer = load_tokenizer(inputs["start"])
    # an FSDP-sharded model is loaded on the CPU, so that a GPU only ever holds its own shard
    model = _student(settings, inputs, "cpu" if uses_fsdp(machine) else device)
    assignment = _assignment(settings, inputs, rows)
    teacher = _teacher(phase, settings, inputs, tokenizer, device, budget.precision, rows, assignment)
    if budget.kind == "flops":
        order = _flop_matched_visits(phase, rows, budget, settings, inputs, _sizes(model, teacher))
    else:
        # the method has no part in it, so all arms visit the same rows
        order = visiting_order(rows, budget, seed, phase.span)
    dataset, batches = _sequences(phase, subset, order, inputs, budget, seed, assignment)
    if isinstance(teacher, LiveTeacher | ServedSignal | SeveralTeachers):
        visited = Rows(dataset)
        teacher.reading.check(visited[int(place)] for place in np.unique(batches))
    counts: dict[str, int] = {}
    metrics: dict[str, Any] = {}
    warnings: list[str] = []
    if teacher is not None and teacher.gives == "own_logits":
        found = _coverage(teacher, dataset, batches)
        counts = {"aligned_tokens": found.aligned_tokens, "rows_left_out": found.rows_left_out}
        metrics["aligned_share"], warnings = found.share, _coverage_warnings(found)
    if phase.sequences == "teacher":
        warnings += cut_answers(dataset, batches, end_of_turn_id(tokenizer))
    data = TrainingData(dataset, batches, settings["loss_on"], _validation(inputs["subset"]))
    # a seed for each phase, so that a sequel does not repeat the draws of its warm-up
    fit_seed = draw_seed(seed, "train", settings["index"])
    training = TrainingSettings(budget, phase, machine, fit_seed, settings.get("max_new_tokens", 0))
    before = check_weights(model, "the student before its first step")
    report = fit(model, tokenizer, data, training, out=out, teacher=teacher)
    # a sharded student is about to be whole on rank 0's GPU, where a live teacher would leave no room for it
    teacher = None
    trained = _exported(model, tokenizer, settings, inputs, out, machine)
    if trained is None:
        return {}  # the facts are reported by rank 0, which alone has the model
    # the loss of a step is that before its update, so the last update is only seen here
    after = check_weights(trained, f"the student after step {report.steps} of {len(batches)}")
    warnings += explosion_warnings(trained, before, after)
    metrics |= _results(report, trained, data.validation)
    if budget.kind == "flops":
        # what the teacher prepared is paid from the same budget as the training
        spent = report.flops + _label_flops(inputs)
        warnings += filter(None, [off_budget(budget, phase.span[1] - phase.span[0], spent)])
    return {
        "cost": {name: getattr(report, name) for name in COSTS},
        "counts": counts | {name: getattr(report, name) for name in COUNTS},
        "metrics": metrics,
        "warnings": warnings + report.warnings,
        **({"earlier_seconds": report.earlier_seconds} if report.earlier_seconds else {}),
    }


def _exported(
    model: Any,
    tokenizer: Any,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    out: Path,
    machine: Machine,
) -> Any:
    """The trained model, whole and with its adapters merged, saved by rank 0; under FSDP None in the other ranks."""
    if uses_fsdp(machine):
        trained = full_tensors(model.state_dict())  # gathered by all ranks, given to rank 0
        if process_rank() > 0:
            return None
        # a plain model takes the gathered weights, so that it can be saved and scored like any other
        model = _student(settings, inputs, device_of(machine))
        model.load_state_dict(trained)
    if settings.get("lora") is not None:
        model = merged(model)
    if process_rank() == 0:
        save_model(model, tokenizer, out)
    return model


def _results(report: TrainingReport, model: Any, validation: Rows | None) -> dict[str, Any]:
    """First and last loss, diagnostics and the validation NLL, each where there is one."""
    metrics: dict[str, Any] = {}
    if report.diagnostics:
        metrics["diagnostics"] = report.diagnostics
    if report.steps:
        metrics |= {"first_loss": report.first_loss, "last_loss": report.last_loss}
    if validation is not None:
        metrics["validation_nll"], metrics["validation_tokens"] = mean_nll(model, validation)
    for name, value in (metrics | report.diagnostics).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise DivergedError(f"{name} is {value} after step {report.steps}")
    return metrics


def _student(settings: Mapping[str, Any], inputs: Mapping[str, Path], device: str) -> Any:
    """The model the phase starts from, with fresh adapters where it trains them."""
    model = load_model(inputs["start"], device=device)
    if settings.get("lora") is None:
        return model
    return with_adapters(model, settings["lora"], draw_seed(settings["seed"], "lora", settings["index"]))


def _teacher(
    phase: TrainingPhase,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    tokenizer: Any,
    device: str,
    precision: str,
    rows: Rows,
    assignment: Assignment | None,
) -> Teaching | None:
    """The teacher whose signal the phase trains on, or None.

    Raises SettingsError where teacher and student do not fit, ValueError where the stage lacks an input.
    """
    if not phase.normal().queries_teacher:
        return None
    signal = Signal(**settings.get("signal", {}))
    if "teachers" in settings:
        return _several(phase, settings, inputs, tokenizer, device, precision, rows, assignment)
    if signal.kind != "live":
        return CachedTeacher(_of_role(inputs, "cache", phase), signal, tokenizer)
    folder = _needed(inputs, "teacher", phase)
    own_rows, rendering = _read_by_teacher(inputs), settings.get("rendering", "own")
    if (folder / SERVER).is_file():
        where = settings.get("where", {})
        served = open_teacher(folder, url=where.get("teacher_url"), access=where.get("teacher_server"))
        assert isinstance(served, ServedTeacher)
        return ServedSignal(served, tokenizer, signal, own_rows, rendering, phase.estimator == POLICY_GRADIENT)
    model, own = load_model(folder, device=device, dtype=precision), load_tokenizer(folder)
    check_weights(model, "the teacher", TeacherDivergedError)
    # only a teacher with other tokens needs the rows in its own rendering
    if phase.divergence in CROSS:
        rendered = Rows(load_from_disk(_needed(inputs, "teacher_rows", phase) / "train"))
        return CrossTeacher(model, own, tokenizer, rendered, device)
    return LiveTeacher(model, own, tokenizer, device, own_rows, rendering)


def _several(
    phase: TrainingPhase,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    tokenizer: Any,
    device: str,
    precision: str,
    rows: Rows,
    assignment: Assignment | None,
) -> SeveralTeachers | SeveralCaches:
    """The signal of several teachers: models in memory, or caches that each made of all rows. Raises as `_teacher`."""
    members, signal = settings["teachers"]["members"], Signal(**settings.get("signal", {}))
    own = [_of_member(inputs, place) for place in range(len(members))]
    if signal.kind != "live":
        assert assignment is not None, "caches have no mean"
        caches = [CachedTeacher(_of_role(one, "cache", phase), signal, tokenizer) for one in own]
        return SeveralCaches(caches, assignment)
    teachers: list[LiveTeacher] = []
    for member, mine in zip(members, own, strict=True):
        folder = _needed(mine, "teacher", phase)
        model, theirs = load_model(folder, device=device, dtype=precision), load_tokenizer(folder)
        check_weights(model, f"teacher {len(teachers) + 1}", TeacherDivergedError)
        rendering = member.get("rendering", "own")
        teachers.append(LiveTeacher(model, theirs, tokenizer, device, _read_by_teacher(mine), rendering))
    weights = [float(member.get("share", 0.0)) for member in members]
    if assignment is not None:
        weights = (np.bincount(assignment.of(rows.numbers), minlength=len(members)) / len(rows)).tolist()
    return SeveralTeachers(teachers, [str(place + 1) for place in range(len(members))], weights, assignment)


def _assignment(settings: Mapping[str, Any], inputs: Mapping[str, Path], rows: Rows) -> Assignment | None:
    """Which of several teachers teaches each row; None for one teacher, and for the mean of several.

    Raises SettingsError where no member teaches a row of the subset.
    """
    teachers = settings.get("teachers")
    if teachers is None or teachers["combine"] != "by_row":
        return None
    found = Assignment(teachers["members"], inputs["mixture"])
    found.of(rows.numbers)
    return found


def _of_member(inputs: Mapping[str, Path], place: int) -> dict[str, Path]:
    """The inputs of one of several teachers, by the roles that they have for one alone (`cache:0:0.1`: `cache:0.1`)."""
    found = {}
    for role, folder in inputs.items():
        name, *rest = role.split(":")
        if rest and rest[0] == str(place) and name in MEMBERS_ROLES:
            found[":".join([name, *rest[1:]])] = folder
    return found


def _read_by_teacher(inputs: Mapping[str, Path]) -> list[Rows]:
    """The rows as the teacher's own template renders them, those of the corpus and synthetic ones, where there are."""
    folders = [
        inputs[role] / name
        for role, name in (("teacher_reading", "train"), ("synthetic", "teacher_reading"))
        if role in inputs
    ]
    return [Rows(load_from_disk(folder)) for folder in folders if folder.is_dir()]


def _sizes(model: Any, teacher: Teaching | None) -> Sizes:
    # a cache was made before, and costs no forward pass here
    parameters = 0 if teacher is None or teacher.gives == "sparse_logits" else teacher.parameters
    return Sizes(count_parameters(model), count_frozen(model), parameters)


def _flop_matched_visits(
    phase: TrainingPhase,
    rows: Rows,
    budget: Budget,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    sizes: Sizes,
) -> np.ndarray:
    """The visits of a phase whose steps are FLOP-matched: as many as its share of the budget pays for.

    A phase that begins later in the budget has a visiting order of its own, since its number of steps does not follow
    from the whole budget's.
    """
    visit = visit_flops(phase, sizes, rows.mean_tokens)
    # labels are paid first; the steps are what the rest of the budget buys
    steps = steps_for(budget, phase.span[1] - phase.span[0], _label_flops(inputs), visit)
    seed = settings["seed"] if phase.span[0] == 0 else draw_seed(settings["seed"], "flops", settings["index"])
    return visits(len(rows), steps, budget.batch_size, seed)


def _label_flops(inputs: Mapping[str, Path]) -> float:
    """FLOPs of making the phase's labels, synthetic rows and caches, charged whole."""
    made = [folder for role, folder in inputs.items() if role.partition(":")[0] in ("labels", "synthetic", "cache")]
    return sum(json.loads((folder / "manifest.json").read_text())["facts"]["cost"]["flops"] for folder in made)


def _coverage(teacher: CrossTeacher, dataset: Dataset, batches: np.ndarray) -> Coverage:
    """How much of the visited rows' text is aligned with the teacher's tokens.

    Raises SettingsError where that is less than `LEAST_ALIGNED` of the scored tokens.
    """
    rows = Rows(dataset)
    # each row once, however often it is visited
    found = teacher.coverage(rows[int(place)] for place in np.unique(batches))
    if found.rows and found.share < LEAST_ALIGNED:
        raise refuse(
            "teacher",
            str(teacher.model.name_or_path),
            f"its tokens spell the same text as the student's at {found.share:.0%} of the scored tokens only",
            "choose a teacher whose tokenizer keeps text as it is, or method=seq_kd",
        )
    return found


def _coverage_warnings(found: Coverage) -> list[str]:
    """Warnings about rows and tokens that are not compared with the teacher."""
    warnings = []
    if found.rows_left_out:
        warnings.append(
            f"{found.rows_left_out} of {found.rows} rows train by cross-entropy alone: {found.rows_missing} are "
            "not in the teacher's rendering (too long for it), the others' text differs"
        )
    if found.share < 0.9:
        warnings.append(f"only {found.share:.0%} of the scored tokens are compared with the teacher's")
    return warnings


def _sequences(
    phase: TrainingPhase,
    subset: Dataset,
    order: np.ndarray,
    inputs: Mapping[str, Path],
    budget: Budget,
    seed: int,
    assignment: Assignment | None,
) -> tuple[Dataset, np.ndarray]:
    """The rows this phase trains on and the order of visits among them."""
    steps = len(order)
    if phase.sequences == "synthetic":
        synthetic = load_from_disk(_needed(inputs, "synthetic", phase) / "synthetic")
        if budget.counts_own_rows:
            steps = steps_on(len(synthetic), budget, phase.span)
        return synthetic, visits(len(synthetic), steps, budget.batch_size, seed)
    if phase.sequences == "mixed":
        synthetic = load_from_disk(_needed(inputs, "synthetic", phase) / "synthetic")
        # synthetic rows first, as the positions of `mixed_visits` count
        both = concatenate_datasets([synthetic, subset.select_columns(synthetic.column_names).cast(synthetic.features)])
        if budget.counts_own_rows:
            steps = steps_on(len(both), budget, phase.span)
        batches = mixed_visits(len(synthetic), len(subset), phase.human_share, steps, budget.batch_size, seed)
        return both, batches
    if phase.sequences == "teacher":
        folders = _of_role(inputs, "labels", phase)
        max_length = json.loads((inputs["subset"] / "subset.json").read_text())["max_length"]
        tokenizer = load_tokenizer(inputs["start"])
        if assignment is None:
            return answered_rows(phase, subset, order, folders, tokenizer, max_length, seed)
        # every member has labelled whole blocks, and each row takes its own teacher's answer
        answers = [role.split(":") for role in inputs if role.partition(":")[0] == "labels"]
        member = {inputs[":".join(parts)]: int(parts[1]) for parts in answers}

        def answered_by(folder: Path, numbers: np.ndarray) -> np.ndarray:
            return assignment.of(numbers) == member[folder]

        return answered_rows(phase, subset, order, folders, tokenizer, max_length, seed, answered_by)
    return subset, order


def _validation(subset: Path) -> Rows | None:
    validation = load_from_disk(subset / "validation")
    return Rows(validation) if len(validation) else None


def _of_role(inputs: Mapping[str, Path], role: str, phase: TrainingPhase) -> list[Path]:
    """The inputs of one role, which may come in blocks (`labels:0.1`)."""
    found = [folder for name, folder in inputs.items() if name.partition(":")[0] == role]
    return found or [_needed(inputs, role, phase)]


def _needed(inputs: Mapping[str, Path], role: str, phase: TrainingPhase) -> Path:
    if role not in inputs:
        raise ValueError(f"{phase.sequences} x {phase.divergence} needs the input {role!r} and got none")
    return inputs[role]
