"""Settings that no arm of a grid reads are said, and teachers of one name are told apart."""

import pytest

from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.frozen import freeze
from harness.plan.unread import unread_lines


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("method=sft signal.kind=top_k", ["signal.kind is set, and no arm of the grid reads it"]),
        ("method=logit_kd signal.kind=top_k signal.top_k=8", []),
        ("method=logit_kd signal.top_k=8", ["signal.top_k is set, and no arm of the grid reads it"]),
        ("method=sft,logit_kd signal.kind=top_k,live", []),
        (
            "method=sft,untrained signal.kind=top_k,live",
            ["signal.kind is swept, and no arm of the grid reads it: its cells are the same"],
        ),
        ("method=sft teacher=strong", ["teacher is set, and no arm of the grid reads it"]),
        ("method=sft teacher=none", []),
        (
            "method=sft teacher.size=small,large",
            ["teacher.size is swept, and no arm of the grid reads it: its cells are the same"],
        ),
        (
            "measure.formats=[fp32],[bf16]",
            ["measure.formats is swept, and no arm of the grid reads it: its cells are the same"],
        ),
        ("data_frac=0.1,1.0 seed=0,1 method=sft,kd", []),
    ],
)
def test_a_setting_that_no_arm_reads_is_named(line, said):
    composed = compose(line.split(" "))
    assert list(unread_lines(composed, Plan.of(composed.cells))) == said


def test_teachers_of_one_name_with_other_settings_are_other_arms():
    words = ["teacher=weak,strong", "teacher.size=small,large", "method=sft,logit_kd"]
    frozen = freeze(Plan.of(compose(words).cells), "g")
    named = {cell.teacher for cell in frozen.cells}
    assert named == {None, "weak", "weak[size=large]", "strong", "strong[size=large]"}
    scored = {one.teacher for cell in frozen.cells for role, one in cell.references.items() if role == "teacher"}
    assert scored == named - {None}


def test_replicates_of_one_teacher_keep_its_name():
    frozen = freeze(Plan.of(compose(["method=logit_kd", "draws=2"]).cells), "g")
    assert {cell.teacher for cell in frozen.cells} == {"weak"}
