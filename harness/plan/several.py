"""Several teachers: the stages of each member, and what the student's training is told of them.

A member's own stages (its fine-tuning, labels and caches of blocks of rows) are those that the same teacher has alone,
under the same addresses, so a grid with one teacher leaves them for a grid with several. Which row a member teaches
is decided where the student trains (`teachers/several.py`). An input of a member has its place in its role:

    several_signal(rows, phase, teachers).inputs     # {"labels:0:0.01": ..., "labels:1:0.01": ..., "mixture": ...}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.config.cell import Cell
from harness.config.checks import refuse
from harness.config.model import Member
from harness.config.recipe import CROSS, HIDDEN, TrainingPhase
from harness.data.corpora import corpus_name
from harness.methods import method_name
from harness.models.kinds import ServedModel, model_of, surely_alike
from harness.plan.data_stages import CellRows
from harness.plan.graph import Stage
from harness.plan.signal_stages import PhaseSignal, phase_signal


def each_teachers_rows(rows: CellRows) -> list[CellRows]:
    """The rows of a cell once for each of its teachers."""
    return [replace(rows, cell=cell) for cell in rows.cell.with_each_teacher()]


def check_different(cell: Cell, teachers: Sequence[Stage]) -> None:
    """Raise SettingsError where two members are one teacher: its labels and caches are stored once."""
    seen: dict[str, str] = {}
    for one, stage in zip(cell.teacher.members, teachers, strict=True):
        if stage.key in seen:
            reason = f"{seen[stage.key]} and {one.teacher.name} are the same teacher"
            raise refuse("teacher.members", _told(cell.teacher.members), reason, "name it once, with both shares")
        seen[stage.key] = one.teacher.name


def several_signal(rows: CellRows, phase: TrainingPhase, teachers: Sequence[Stage]) -> PhaseSignal:
    """What a phase takes from several teachers. Raises as `phase_signal`."""
    if not phase.uses_teacher:
        return PhaseSignal()
    prepared: dict[str, Stage] = {}
    live: dict[str, Stage] = {}
    for place, (own, teacher) in enumerate(zip(each_teachers_rows(rows), teachers, strict=True)):
        signal = phase_signal(own, phase, teacher)
        prepared |= {_placed(role, place): stage for role, stage in signal.prepared.items()}
        live |= {_placed(role, place): stage for role, stage in signal.live.items()}
    # ids and sources of the rows, by which each goes to its teacher
    if rows.cell.teacher.combine == "by_row":
        live["mixture"] = rows.mixture
    return PhaseSignal(prepared, live)


def composition(cell: Cell, phase: TrainingPhase) -> dict[str, Any]:
    """What decides which teacher a phase's rows have, as plain JSON."""
    student, given = model_of(cell.student), cell.teacher
    members: list[dict[str, Any]] = []
    for one, share in zip(given.members, shares_of(given.members, given.combine), strict=True):
        entry: dict[str, Any] = {"sources": sorted(set(one.sources))} if one.sources else {"share": share}
        # of a teacher that reads the student's rendering anyway the setting moves no number
        reads = phase.queries_teacher and cell.signal.kind == "live"
        if reads and one.teacher.rendering != "own" and not surely_alike(student, model_of(one.teacher)):
            entry["rendering"] = one.teacher.rendering
        members.append(entry)
    return {"combine": given.combine, "members": members}


def shares_of(members: Sequence[Member], combine: str) -> list[float]:
    """Each member's share: equal where none is set, 0 of a member with `sources`. They sum to 1, or all are 0.

    Raises SettingsError for shares that do not sum to 1, or that only some members have.
    """
    open_to_all = [one for one in members if not one.sources or combine == "mean"]
    given = [one.share for one in open_to_all if one.share is not None]
    if given and len(given) < len(open_to_all):
        without = next(one.teacher.name for one in open_to_all if one.share is None)
        reason = f"{without} has no share and another member has one"
        raise refuse("teacher.members", _told(members), reason, "give every member a share, or none for equal shares")
    if given and not math.isclose(sum(given), 1, abs_tol=1e-6):
        among = "" if len(open_to_all) == len(members) else " of the members without sources"
        reason = f"the shares{among} sum to {sum(given):g} and must sum to 1"
        raise refuse("teacher.members", _told(members), reason, "change the shares, or leave them out for equal shares")
    shares = {id(one): 1 / len(open_to_all) if one.share is None else float(one.share) for one in open_to_all}
    return [shares.get(id(one), 0.0) for one in members]


def check_several(cell: Cell, phases: Sequence[TrainingPhase]) -> None:
    """Raise SettingsError for members that cannot teach this cell's rows by this method."""
    given, method = cell.teacher, method_name(cell.method)
    members: list[Member] = list(given.members)
    if not members:
        way_out = "write e.g. 'teacher.members=[{preset: weak, share: 0.5}, {preset: strong, share: 0.5}]'"
        raise refuse("teacher.members", [], "teacher=several needs at least one member", way_out)
    for one in members:
        if one.teacher.kind in ("none", "several"):
            reason = f"kind={one.teacher.kind} is no teacher by itself"
            raise refuse("teacher.members", one.teacher.name, reason, "name a preset of one model, e.g. weak")
        if one.sources and given.combine == "mean":
            reason = f"in the mean every member teaches every row, and {one.teacher.name} has sources"
            raise refuse("teacher.combine", "mean", reason, "leave the sources out, or set teacher.combine=by_row")
        if one.sources and one.share is not None:
            reason = f"{one.teacher.name} has sources and a share, and teaches all rows of its sources"
            raise refuse("teacher.members", _told(members), reason, "leave its share out")
    shares_of(members, given.combine)
    known = cell.corpus.known_sources()
    if known is not None:  # else what its rows name is known only once they are read
        check_sources(cell, known)
    for phase in phases:
        if phase.uses_teacher and phase.teacher == "given":
            _check_phase(cell, members, phase, method)


def _check_phase(cell: Cell, members: Sequence[Member], phase: TrainingPhase, method: str) -> None:
    name, mean = cell.teacher.name, cell.teacher.combine == "mean"
    if phase.sequences in ("synthetic", "mixed"):
        raise _refused(name, f"method={method} takes synthetic rows from one teacher")
    if phase.sequences == "interleaved":
        raise _refused(name, "in speculative KD one teacher accepts or replaces the student's tokens")
    if phase.divergence in HIDDEN:
        raise _refused(name, f"method={method} compares the hidden states of one teacher")
    if phase.divergence in CROSS:
        raise _refused(name, f"method={method} aligns the tokens of one teacher with the student's")
    if mean and phase.sequences == "teacher":
        reason = f"method={method} trains on the teacher's answers, and an answer is written by one teacher"
        raise refuse("teacher.combine", "mean", reason, "set teacher.combine=by_row")
    if mean and phase.queries_teacher and cell.signal.kind != "live":
        reason = f"with signal.kind={cell.signal.kind} only a part of each distribution is known, and not their mean"
        raise refuse("teacher.combine", "mean", reason, "set signal.kind=live, or teacher.combine=by_row")
    served = [one.teacher.name for one in members if isinstance(model_of(one.teacher), ServedModel)]
    if served and phase.queries_teacher and cell.signal.kind == "live":
        reason = f"{served[0]} is behind a server, which names only its top-k tokens while the student trains"
        way_out = "set signal.kind=top_k, use method=seq_kd, or give members with weights here"
        raise refuse("teacher.members", _told(members), reason, way_out)


def check_sources(cell: Cell, known: Sequence[str]) -> None:
    """Raise SettingsError for a source that the corpus does not have, and one that no member teaches.

    `known`: the sources of the corpus's training rows.
    """
    members: list[Member] = list(cell.teacher.members)
    corpus, listed = corpus_name(cell.corpus), ", ".join(known)
    taught = [source for one in members for source in one.sources or ()]
    if unknown := [source for source in taught if source not in known]:
        raise refuse("teacher.members", f"sources: {unknown[0]}", f"corpus={corpus} has the sources {listed}")
    left = [source for source in known if source not in taught]
    if left and all(one.sources for one in members):
        reason = f"no member teaches the rows of {', '.join(left)}"
        raise refuse("teacher.members", _told(members), reason, "name these sources, or add a member without sources")


def _refused(name: str, reason: str) -> Exception:
    way_out = "choose one teacher, or a method on distributions or answers, e.g. method=kd or seq_kd"
    return refuse("teacher", name, reason, way_out)


def _told(members: Sequence[Member]) -> str:
    """The members in short, as a refusal names them."""
    parts = []
    for one in members:
        share: Mapping[str, Any] = {"share": one.share, "sources": one.sources}
        told = "".join(f", {name}: {value}" for name, value in share.items() if value is not None)
        parts.append(f"{{{one.teacher.name}{told}}}")
    return f"[{', '.join(parts)}]"


def _placed(role: str, place: int) -> str:
    """The role of a member's input: `labels:0.01` of the second member is `labels:1:0.01`."""
    name, _, block = role.partition(":")
    return f"{name}:{place}" + (f":{block}" if block else "")
