"""Plans with several teachers: their stages are those that each has alone, and what cannot be taught is refused."""

import json

import pytest

from harness.config.checks import SettingsError
from harness.config.model import Member, Teacher
from harness.execution.preflight import preflight
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.compose import compose
from harness.plan.estimate import estimate
from harness.plan.frozen import FrozenPlan, freeze
from harness.plan.rehearsal import rehearsed

TWO = "teacher.members=[{preset: weak, share: 0.5}, {preset: strong, share: 0.5}]"
BY_SOURCE = "teacher.members=[{preset: strong, sources: [add, reverse]}, {preset: weak}]"


def planned(*arguments, members=TWO):
    (cell,) = compose(["teacher=several", members, "data_frac=0.0001", *arguments]).cells
    return plan_cell(cell)


def alone(teacher, *arguments):
    (cell,) = compose([f"teacher={teacher}", "data_frac=0.0001", *arguments]).cells
    return plan_cell(cell)


def refused(*arguments, members=TWO):
    with pytest.raises(SettingsError) as error:
        planned(*arguments, members=members)
    return str(error.value)


@pytest.mark.parametrize("arguments", [["method=seq_kd"], ["method=logit_kd", "signal.kind=top_k"]])
def test_labels_and_caches_are_those_of_each_teacher_alone(arguments):
    several, taught = planned(*arguments), [alone(teacher, *arguments) for teacher in ("weak", "strong")]
    assert [stage.key for stage in several.teaching] == [stage.key for one in taught for stage in one.teaching]
    assert [stage.key for stage in several.members] == [one.teacher.key for one in taught]
    assert len({several.train[-1].key, *(one.train[-1].key for one in taught)}) == 3


def test_the_teachers_of_a_live_signal_are_those_alone_and_each_is_a_reference():
    several, taught = planned("method=kd"), [alone(teacher, "method=kd") for teacher in ("weak", "strong")]
    inputs = several.train[-1].inputs
    assert [inputs[f"teacher:{place}"].key for place in (0, 1)] == [one.teacher.key for one in taught]
    assert several.train[0].key == taught[0].train[0].key, "the warm-up has no teacher"
    for place, one in enumerate(taught):
        mine = {name: stage.key for name, stage in several.references[f"teacher:{place}"].items()}
        assert mine == {name: stage.key for name, stage in one.references["teacher"].items()}
    plan = Plan.of([several.cell])
    assert plan.teachers == {one.teacher.key for one in taught}


def test_one_member_is_that_teacher():
    one = planned("method=kd", members="teacher.members=[{preset: weak}]")
    assert one.fingerprint == alone("weak", "method=kd").fingerprint and one.teacher_name == "weak"


@pytest.mark.parametrize(
    ("members", "more", "name"),
    [
        (TWO, [], "weak+strong"),
        ("teacher.members=[{preset: weak}, {preset: strong}]", [], "weak+strong"),
        ("teacher.members=[{preset: weak, share: 0.25}, {preset: strong, share: 0.75}]", [], "weak+strong[0.25/0.75]"),
        (TWO, ["teacher.combine=mean"], "weak+strong[mean]"),
        (BY_SOURCE, [], "strong(add,reverse)+weak"),
        (TWO, ["teacher.name=both"], "both"),
    ],
)
def test_a_name_tells_the_composition(members, more, name):
    assert planned("method=kd", *more, members=members).teacher_name == name


def test_what_decides_a_rows_teacher_is_identity_and_equal_shares_need_not_be_named():
    unnamed = planned("method=kd", members="teacher.members=[{preset: weak}, {preset: strong}]")
    assert unnamed.fingerprint == planned("method=kd").fingerprint
    others = [
        planned("method=kd", "teacher.combine=mean"),
        planned("method=kd", members="teacher.members=[{preset: weak, share: 0.4}, {preset: strong, share: 0.6}]"),
        planned("method=kd", members=BY_SOURCE),
        planned("method=kd", members="teacher.members=[{preset: strong, sources: [add]}, {preset: weak}]"),
    ]
    assert len({unnamed.fingerprint, *(one.fingerprint for one in others)}) == 5


def test_an_arm_without_a_teacher_keeps_its_address():
    assert planned("method=sft").fingerprint == alone("weak", "method=sft").fingerprint
    assert planned("method=self_kd").fingerprint == alone("weak", "method=self_kd").fingerprint


@pytest.mark.parametrize(
    ("members", "more", "says"),
    [
        ("teacher.members=[]", [], "needs at least one member"),
        (
            "teacher.members=[{preset: weak, share: 0.5}, {preset: strong, share: 0.4}]",
            [],
            "sum to 0.9 and must sum to 1",
        ),
        ("teacher.members=[{preset: weak, share: 0.5}, {preset: strong}]", [], "strong has no share"),
        ("teacher.members=[{preset: weak, sources: [oops]}, {preset: strong}]", [], "has the sources add, reverse"),
        ("teacher.members=[{preset: weak, sources: [add]}]", [], "no member teaches the rows of reverse, upper"),
        ("teacher.members=[{preset: weak, sources: [add], share: 1}, {preset: strong}]", [], "sources and a share"),
        ("teacher.members=[{preset: weak}, {preset: weak}]", [], "weak and weak are the same teacher"),
        ("teacher.members=[{preset: weak, kind: none}, {preset: strong}]", [], "is no teacher by itself"),
        (BY_SOURCE, ["teacher.combine=mean"], "every member teaches every row, and strong has sources"),
        (TWO, ["method=seq_kd", "teacher.combine=mean"], "an answer is written by one teacher"),
        (TWO, ["method=logit_kd", "signal.kind=top_k", "teacher.combine=mean"], "only a part of each distribution"),
        (TWO, ["method=feature_kd"], "hidden states of one teacher"),
        (TWO, ["method=relational_kd"], "hidden states of one teacher"),
        (TWO, ["method=cross_kd"], "aligns the tokens of one teacher"),
        (TWO, ["method=skd"], "in speculative KD one teacher"),
        (TWO, ["method=two_stage"], "synthetic rows from one teacher"),
        (
            "teacher.members=[{preset: weak}, {preset: served, path: 'http://here:1', served_model: a, tokenizer: b}]",
            [],
            "served is behind a server",
        ),
        ("teacher.members=[{preset: wek}]", [], "allowed are hf, letters,"),
        ("teacher.members=[{preset: several}]", [], "allowed are hf, letters,"),
        ("teacher.members=[{preset: weak, lesson: 3}]", [], r"teacher.members[0].lesson=3 cannot be run"),
        ("teacher.members=[{preset: weak, share: 1.5}]", [], "a number above 0 and at most 1"),
        ("teacher.members=[{preset: weak, sources: add}]", [], "it is a list of the corpus's sources"),
        ("teacher.members=[weak]", [], "an entry names a preset"),
        (TWO, ["teacher.quantise=int8"], "each member has its own"),
        (TWO, ["teacher.combine=median"], "allowed are by_row, mean"),
        (TWO, ["student.kind=several"], "only a teacher has members"),
    ],
)
def test_what_several_teachers_cannot_do_is_refused_in_a_sentence(members, more, says):
    said = refused(*(more if any(one.startswith("method") for one in more) else ["method=kd", *more]), members=members)
    assert says in said and said.endswith(".") and "\n" not in said


def test_members_are_for_several_only():
    with pytest.raises(SettingsError, match="only teacher=several has members"):
        compose(["method=kd", "teacher=weak", TWO])


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ("teacher.members=[{preset: weak, distillation_allowed: 'no'}, {preset: strong}]", "forbids training"),
        ("teacher.members=[{preset: weak}, {preset: letters}]", "its tokenizer is not that of student"),
        ("teacher.members=[{preset: weak}, {preset: hf, path: /not/there}]", "no such folder"),
    ],
)
def test_every_member_is_checked_before_a_run(members, says):
    with pytest.raises(SettingsError, match=says):
        preflight(Plan.of(compose(["method=logit_kd", "teacher=several", members]).cells))


def test_members_of_another_family_may_answer():
    members = "teacher.members=[{preset: weak}, {preset: letters}]"
    preflight(Plan.of(compose(["method=seq_kd", "teacher=several", members, "data_frac=0.0001"]).cells))


def test_members_can_be_swept_and_given_in_python():
    cells = compose(["method=kd", "teacher=several", f"{TWO},[{{preset: weak}}]"]).cells
    assert [plan_cell(cell).teacher_name for cell in cells] == ["weak+strong", "weak"]
    (weak,), (strong,) = (
        compose(["method=kd", f"teacher={name}", "data_frac=0.0001"]).cells for name in ("weak", "strong")
    )
    teacher = Teacher(name="both", kind="several", members=[Member(weak.teacher, 0.5), Member(strong.teacher, 0.5)])
    weak.teacher = teacher
    assert plan_cell(weak).fingerprint == planned("method=kd").fingerprint


def test_a_frozen_plan_describes_each_member_as_where_it_teaches_alone():
    frozen = FrozenPlan.of(freeze(Plan.of([planned("method=kd").cell]), "two").plain())
    (cell,) = frozen.cells
    (single,) = freeze(Plan.of([alone("strong", "method=kd").cell]), "one").cells
    assert cell.teacher == "weak+strong" and set(cell.references) == {"base", "teacher:0", "teacher:1"}
    member, own = cell.as_reference("teacher:1"), single.as_reference("teacher")
    assert (member.role, member.teacher, member.fingerprint) == ("teacher", "strong", own.fingerprint)
    assert member.settings["teacher"] == own.settings["teacher"]
    assert "members" not in single.settings["teacher"] and "combine" not in single.settings["teacher"]
    told = cell.settings["teacher"]
    assert told["combine"] == "by_row" and [one["share"] for one in told["members"]] == [0.5, 0.5]


def test_an_estimate_counts_every_member_of_a_mean_and_one_member_a_row():
    taught = {name: estimate(alone(name, "method=logit_kd").train[-1]).flops for name in ("weak", "strong")}
    small = "teacher.members=[{preset: weak, share: 0.25, size: tiny}, {preset: strong, share: 0.75}]"
    student = estimate(planned("method=sft").train[-1]).flops
    teaches = taught["strong"] - student
    tiny = estimate(alone("weak", "method=logit_kd", "teacher.size=tiny").train[-1]).flops - student
    by_row = estimate(planned("method=logit_kd", members=small).train[-1]).flops - student
    mean = estimate(planned("method=logit_kd", "teacher.combine=mean", members=small).train[-1]).flops - student
    assert by_row == pytest.approx(0.25 * tiny + 0.75 * teaches) and mean == pytest.approx(tiny + teaches)


def test_labels_of_visited_rows_alone_are_each_members():
    label_rows = "label_rows: visited"
    members = f"teacher.members=[{{preset: weak, {label_rows}}}, {{preset: strong, {label_rows}}}]"
    several = planned("method=seq_kd", members=members)
    taught = [alone(name, "method=seq_kd", "teacher.label_rows=visited") for name in ("weak", "strong")]
    assert [several.train[-1].inputs[f"labels:{place}"].key for place in (0, 1)] == [
        one.train[-1].inputs["labels"].key for one in taught
    ]


def test_a_rehearsal_has_a_stand_in_for_every_member(tmp_path):
    members = "teacher.members=[{preset: tulu3_8b}, {preset: tulu3_70b, sources: [math]}]"
    arguments = ["method=kd", "teacher=several", members, "student=llama_1b", "corpus=tulu3"]
    (cell,) = rehearsed(compose(arguments).cells, tmp_path)
    assert [str(tmp_path) in one.teacher.path for one in cell.teacher.members] == [True, True]
    assert [one.sources is None for one in cell.teacher.members] == [True, False]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ("{preset: weak, sources: [maths]}, {preset: strong, sources: [chat]}", None),
        ("{preset: weak, sources: [maths]}, {preset: strong}", None),
        ("{preset: weak, sources: [math]}, {preset: strong}", "corpus=jsonl has the sources maths, chat"),
        ("{preset: weak, sources: [maths]}", "no member teaches the rows of chat"),
    ],
)
def test_sources_of_rows_in_a_file_are_compared_before_a_run(tmp_path, members, says):
    rows = [{"prompt": f"Say {i}", "completion": str(i), "source": ("maths", "chat")[i % 2]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = ["corpus=jsonl", f"corpus.path={tmp_path / 'rows.jsonl'}", "data_frac=1.0"]
    plan = Plan.of([planned("method=logit_kd", *corpus, members=f"teacher.members=[{members}]").cell])
    if says is None:
        return preflight(plan)
    with pytest.raises(SettingsError, match=says):
        preflight(plan)
