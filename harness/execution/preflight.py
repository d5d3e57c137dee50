"""Preflight: settings that cannot work are refused before any compute is used.

Folders, hub ids, templates, corpora and pairs of tokenizers are checked from files alone; nothing is
downloaded and neither torch nor transformers is imported. A server that stages of the plan will query is asked once.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.evaluation import Evals
from harness.config.machine import Machine
from harness.config.model import QUANTISATIONS, Model, Student, Teacher
from harness.config.teacher_signal import POLICY_GRADIENT, check_served
from harness.data.corpora import corpus_from
from harness.evals import eval_names
from harness.evals.benchmarks import benchmark_names, load_benchmark
from harness.execution.model_checks import check_model
from harness.models.kinds import MiniModel, ServedModel, model_of, surely_alike
from harness.plan.cell_plan import CellPlan, Plan
from harness.plan.graph import Stage
from harness.plan.phase_steps import check_phase_steps
from harness.plan.several import check_sources
from harness.runtime.processes import visible_gpus
from harness.teachers.completions_client import CompletionsClient
from harness.teachers.discovery import endpoint_at
from harness.teachers.http_endpoint import BY_SLURM

SERVER_SECONDS = 5.0
"""Seconds within which a teacher's server has to answer before a run starts."""
SCORING_SECONDS = 60.0
"""Seconds within which it has to score three tokens."""


def preflight(plan: Plan, machine: Machine | None = None, made: Callable[[str], bool] | None = None) -> None:
    """Check every distinct part of the plan's cells, and the machine where they run; None: a cluster, or no run.

    `made`: whether the store has a stage, by key; a server that only finished stages queried is not asked. Neither
    machine nor `made`: the plan alone is checked.

    Raises SettingsError for the first part that cannot work.
    """
    if machine is not None and machine.device == "cuda" and not visible_gpus():
        raise refuse("machine.device", "cuda", "no GPU is visible here", "set machine.device=auto")
    check_phase_steps(plan)
    checked: set[str] = set()
    for cell_plan in plan.cells:
        cell = cell_plan.cell
        _once(checked, repr(cell.student), lambda cell=cell: _check_student(cell.student))
        _once(checked, repr(cell.corpus), cell.corpus.check)
        _once(checked, repr((cell.student, cell.corpus)), lambda cell=cell: _check_family(cell.student, [cell.corpus]))
        _once(checked, repr(cell.evals), lambda cell=cell: _check_evals(cell.evals))
        _once(checked, repr((cell.student, cell.evals)), lambda cell=cell: _check_words(cell.student, cell.evals))
        _once(checked, repr(cell.measure), lambda cell=cell: _check_formats(cell.measure.formats))
        if cell_plan.members:
            _once(checked, repr((cell.teacher, cell.corpus)), lambda cell=cell: _check_sources_of_rows(cell))
        for cell in cell_plan.cell.with_each_teacher() if cell_plan.taught_by == "given" else ():
            _once(checked, repr(cell.teacher), lambda cell=cell: _check_teacher(cell.teacher, machine))
            _once(checked, repr((cell.teacher, cell.evals)), lambda cell=cell: _check_words(cell.teacher, cell.evals))
            read = [cell.corpus, *(corpus_from(one.corpus) for one in cell.teacher.lessons if one.corpus is not None)]
            _once(checked, repr((cell.teacher, read)), lambda cell=cell, read=read: _check_family(cell.teacher, read))
            _once(
                checked,
                repr((cell.student, cell.teacher, cell.signal, cell.method)),
                lambda cell_plan=cell_plan, cell=cell: _check_pair(cell_plan, cell),
            )
    if machine is not None or made is not None:
        _check_servers(plan, machine, made or (lambda key: False))


def _once(checked: set[str], what: str, check) -> None:  # type: ignore[no-untyped-def]
    # Known by its repr, since settings hold lists and cannot be hashed. A grid of a thousand cells has few distinct
    # parts.
    if what not in checked:
        checked.add(what)
        check()


def _check_student(student: Student) -> None:
    check_model(student)
    if student.lora_rank is not None:
        _check_package("student.lora_rank", student.lora_rank, "training adapters", "peft", "lora")


def _check_teacher(teacher: Teacher, machine: Machine | None) -> None:
    model = model_of(teacher)
    if isinstance(model, ServedModel) and model.path == BY_SLURM and machine is not None:
        way_out = "send the grid with slurm=<cluster>, or set teacher.path to where a server listens"
        raise refuse("teacher.path", BY_SLURM, "only a cluster can start its server as a job", way_out)
    if teacher.quantise is not None and not model.weights_here:
        way_out = "serve quantised weights, or set teacher.quantise=null"
        raise refuse("teacher.quantise", teacher.quantise, "the weights of a served teacher are not here", way_out)
    if teacher.distillation_allowed == "no" and not teacher.acknowledge_license:
        reason = (
            f"the licence of teacher={teacher.name} ({teacher.license or 'not named'}) forbids training on its outputs"
        )
        way_out = "choose another teacher, or set teacher.acknowledge_license=true if its owner permits it"
        raise refuse("teacher.distillation_allowed", "no", reason, way_out)
    check_model(teacher)
    if teacher.quantise is not None:
        _check_package("teacher.quantise", teacher.quantise, "rounding weights", "bitsandbytes", "quantise")


def _check_family(settings: Model, corpora: Iterable[Any]) -> None:
    """Raise SettingsError where a corpus has no room for rows in the tokens of a miniature's model."""
    model = model_of(settings)
    if isinstance(model, MiniModel):
        for corpus in corpora:
            corpus.check_family(model.family)


def _check_formats(formats: list[str]) -> None:
    for name in formats:
        if name in QUANTISATIONS:
            _check_package("measure.formats", name, "rounding weights", "bitsandbytes", "quantise")


def _check_package(name: str, value: object, what: str, package: str, extra: str) -> None:
    # found and not imported: peft and bitsandbytes import torch, which takes seconds
    if importlib.util.find_spec(package) is None:
        raise refuse(name, value, f"{what} needs the package {package}", f"pip install 'harness[{extra}]'")


def _check_evals(evals: Evals) -> None:
    names = evals.names
    known = (*eval_names(), *benchmark_names())
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise refuse("evals.names", unknown[0] if unknown else names, f"allowed are {', '.join(known)}")
    benchmarks = [name for name in benchmark_names() if name in names]
    for name in evals.revisions:
        if name not in benchmarks:
            have = ", ".join(benchmarks) or "none"
            raise refuse("evals.revisions", name, f"the benchmarks of evals.names are {have}")
    for name in set(benchmarks):
        _check_package("evals.names", name, "a benchmark", "lm_eval", "evals")
        if load_benchmark(name).runs_code and not evals.run_code:
            way_out = "set evals.run_code=true to allow it, or leave the evaluation out"
            raise refuse("evals.names", name, "scoring it runs model-generated code, in a sandbox", way_out)


def _check_words(settings: Model, evals: Evals) -> None:
    """Raise SettingsError where a miniature's model would have to read a public benchmark."""
    model = model_of(settings)
    asked = [name for name in benchmark_names() if name in evals.names]
    if isinstance(model, MiniModel) and asked:
        reason = f"{settings.setting}={settings.name} is a model of the miniature, which has no tokens for real text"
        way_out = f"set evals.names=[heldout,verified], or {settings.setting}.kind=hf with a model of real text"
        raise refuse("evals.names", asked[0], reason, way_out)


def _check_sources_of_rows(cell: Cell) -> None:
    """Raise SettingsError where rows that are here have other sources than those that several teachers share out."""
    named = any(one.sources for one in cell.teacher.members)
    if named and cell.corpus.known_sources() is None and getattr(cell.corpus, "path", None) is not None:
        found = (example.source for example in cell.corpus.examples(cell.world_seed))
        check_sources(cell, list(dict.fromkeys(found)))


def _check_pair(cell_plan: CellPlan, cell: Cell) -> None:
    """Raise SettingsError unless the teacher of `cell` can give its signal to this student.

    `cell` is the planned one, or that with one of its several teachers. They must share a vocabulary wherever the
    teacher scores the student's tokens.
    """
    student, teacher = cell.student, cell.teacher
    taught_by = model_of(teacher)
    if not taught_by.weights_here and cell_plan.stored_signal:
        check_served(cell_plan.cell.signal)
    tokens, signal = model_of(student).tokens(), cell_plan.cell.signal
    if cell_plan.stored_signal and signal.kind == "top_k" and tokens is not None and signal.top_k > tokens:
        reason = f"the vocabulary of student={student.name} has only {tokens} tokens"
        raise refuse("signal.top_k", signal.top_k, reason, f"set it to at most {tokens}")
    inputs = [{role.partition(":")[0] for role in stage.inputs} for stage in cell_plan.train]
    live = any("teacher" in given and "teacher_rows" not in given for given in inputs)
    if not (live or cell_plan.stored_signal):
        return  # only text is taken from the teacher, or each model processes its own tokens
    mine, theirs = model_of(student).vocabulary(), taught_by.vocabulary()
    if mine is not None and theirs is not None and (difference := mine.difference(theirs)):
        raise refuse(
            "teacher",
            teacher.name,
            f"its tokenizer is not that of student={student.name}, so their token ids mean different things: "
            f"{difference}",
            "choose a teacher of the same family, or method=seq_kd or cross_kd, which take another tokenizer",
        )
    own = teacher.rendering == "own" and not surely_alike(model_of(student), taught_by)
    if own and taught_by.rejects_system():
        _check_system_turns(cell)


def _check_system_turns(cell: Cell) -> None:
    """Raise SettingsError where rows that are here have a system turn, which the teacher's own template rejects."""
    if getattr(cell.corpus, "path", None) is None:
        return  # made up here without system turns, or still on the hub
    for example in cell.corpus.examples(cell.world_seed):
        if any(turn["role"] == "system" for turn in example.messages):
            raise refuse(
                "teacher.rendering",
                "own",
                f"the chat template of teacher={cell.teacher.name} rejects a system turn, which row {example.id} has",
                "set teacher.rendering=student, or teacher.chat_template=tulu",
            )


def _check_servers(plan: Plan, machine: Machine | None, made: Callable[[str], bool]) -> None:
    """Raise SettingsError for a server that a stage still has to query and that cannot be queried.

    Its key's variable has to be set, and on this machine it has to answer, list the model and score given text.
    """
    checked: set[str] = set()
    for cell_plan in plan.cells:
        waiting = [stage for stage in cell_plan.stages() if not made(stage.key)]
        for cell in cell_plan.cell.with_each_teacher() if cell_plan.taught_by == "given" else ():
            model = model_of(cell.teacher)
            if isinstance(model, ServedModel) and any(_queries(stage, model) for stage in waiting):
                _once(checked, repr(model), lambda model=model: _check_server(model, machine))
                if machine is not None and model.path != BY_SLURM and any(_scores(stage, model) for stage in waiting):
                    estimators = {phase.estimator for phase in cell_plan.cell.method.phases() if phase.queries_teacher}
                    top_k = 0 if estimators == {POLICY_GRADIENT} else cell_plan.cell.signal.top_k
                    _once(checked, repr((model, top_k)), lambda model=model, k=top_k: _check_scoring(model, k))


def _queries(stage: Stage, model: ServedModel) -> bool:
    """Whether a stage sends requests to the model's server."""
    if "teacher_url" in stage.where:
        return stage.where["teacher_url"] == model.path
    return stage.kind == "base" and stage.settings["kind"] == "http" and stage.where["model"]["path"] == model.path


def _scores(stage: Stage, model: ServedModel) -> bool:
    """Whether a stage has the model's server score given text."""
    return stage.kind in ("cache", "train") and _queries(stage, model)


def _check_server(model: ServedModel, machine: Machine | None) -> None:
    """Raise SettingsError unless the key's variable is set, and on this machine the server lists the model."""
    assert model.path is not None and model.served_model is not None
    if model.api_key_env is not None and not os.environ.get(model.api_key_env, "").strip():
        way_out = f"export {model.api_key_env} with the server's key, or set teacher.api_key_env=null"
        raise refuse("teacher.api_key_env", model.api_key_env, "no such environment variable is set here", way_out)
    if machine is None or model.path == BY_SLURM:
        return
    seconds = min(SERVER_SECONDS, model.read_timeout_s)
    access = {**model.access, "timeout_s": seconds, "connect_timeout_s": seconds, "attempts": 1}
    with closing(endpoint_at(model.path, **access)) as endpoint:
        _ = CompletionsClient(endpoint, model.served_model).context


def _check_scoring(model: ServedModel, top_k: int) -> None:
    """Raise SettingsError unless the server scores text that it is given, naming `top_k` tokens a position."""
    assert model.path is not None and model.served_model is not None
    access = {**model.access, "timeout_s": min(SCORING_SECONDS, model.read_timeout_s), "attempts": 2}
    with closing(endpoint_at(model.path, **access)) as endpoint:
        # any ids will do: what they mean is checked when the server is probed
        CompletionsClient(endpoint, model.served_model).score([[0, 1, 2]], top_k)
