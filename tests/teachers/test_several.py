"""Several teachers: which of them teaches a row, and what a student is compared with at its scored positions."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from harness.config.checks import SettingsError
from harness.data.chat import render
from harness.data.sequences import Row, Rows, answered, collate
from harness.models.logits import scored_positions
from harness.teachers.several import MEMBER, Assignment, SeveralTeachers
from harness.teachers.signals import LiveTeacher
from tests.doubles import CHAT_TEMPLATE, byte_tokenizer, tiny_llama
from tests.stages.small_world import pair

TOKENIZER = byte_tokenizer()
HALVES = [{"share": 0.5}, {"share": 0.5}]
WEIGHTS = [0.25, 0.75]


def mixture(tmp_path, count=40, name="mixture"):
    """A mixture of `count` rows of the sources add and say, in turns; its folder."""
    (tmp_path / name).mkdir()
    rows = {"id": [f"row-{i}" for i in range(count)], "source": ["add" if i % 2 == 0 else "say" for i in range(count)]}
    pq.write_table(pa.table(rows), tmp_path / name / "train.parquet")
    return tmp_path / name


def rendered(count, tokenizer=TOKENIZER):
    """Rows of two answers each, numbered as in the mixture."""
    turns = [pair(f"Add {i}", str(i)) + pair("Again", str(i * i)) for i in range(count)]
    return [
        Row(np.array(one.input_ids, dtype=np.int32), one.starts, one.ends, number)
        for number, one in enumerate(render(tokenizer, messages, 100) for messages in turns)
    ]


def live(seed, tokenizer=TOKENIZER, own_rows=(), vocabulary=262):
    return LiveTeacher(tiny_llama(vocabulary, seed=seed), tokenizer, TOKENIZER, own_rows=own_rows)


def alone(teacher, row):
    """One teacher's logits (n, V) of the student's tokens at a row's scored positions."""
    read = collate([one for one in teacher.reading.rows(row)], pad_id=0)
    logits = teacher.logits(read["input_ids"], read["attention_mask"], scored_positions(read["labels"]))
    return teacher.reading.shared.of_teacher(logits)


def given_by(teachers, batch):
    """The members' whole logits at their positions of a micro-batch."""
    names = ("input_ids", "attention_mask", "labels")
    read = [[batch.get(f"teacher{place}_{name}") for name in names] for place in range(len(teachers.members))]
    return [
        None if ids is None else member.logits(ids, mask, scored_positions(labels))
        for member, (ids, mask, labels) in zip(teachers.members, read, strict=True)
    ]


def test_a_row_keeps_its_teacher_whatever_other_rows_there_are(tmp_path):
    everything = Assignment(HALVES, mixture(tmp_path)).of(np.arange(40))
    assert set(everything.tolist()) == {0, 1}
    backwards = np.arange(40)[::-1]
    assert np.array_equal(Assignment(HALVES, tmp_path / "mixture").of(backwards), everything[::-1])
    assert Assignment(HALVES, tmp_path / "mixture").of([7]).tolist() == [everything[7]], "alone as among all"
    smaller = mixture(tmp_path, 10, "smaller")
    assert np.array_equal(Assignment(HALVES, smaller).of(np.arange(10)), everything[:10])


def test_turns_of_one_conversation_have_one_teacher(tmp_path):
    found = Assignment(HALVES, mixture(tmp_path)).of(np.arange(40) + (3 << 32))
    assert np.array_equal(found, Assignment(HALVES, tmp_path / "mixture").of(np.arange(40)))


def test_rows_are_drawn_by_share(tmp_path):
    shares, count = [0.2, 0.5, 0.3], 4000
    found = Assignment([{"share": share} for share in shares], mixture(tmp_path, count)).of(np.arange(count))
    for place, share in enumerate(shares):
        error = math.sqrt(share * (1 - share) / count)
        assert abs(np.mean(found == place) - share) < 4 * error


def test_a_larger_share_keeps_the_rows_that_the_first_member_had(tmp_path):
    few = Assignment(HALVES, mixture(tmp_path, 200)).of(np.arange(200))
    more = Assignment([{"share": 0.7}, {"share": 0.3}], tmp_path / "mixture").of(np.arange(200))
    assert np.all(more[few == 0] == 0) and np.mean(more == 0) > np.mean(few == 0)


def test_a_source_goes_to_the_first_member_that_names_it_and_the_others_are_shared(tmp_path):
    members = [{"share": 0.5}, {"sources": ["add"]}, {"sources": ["say", "add"]}, {"share": 0.5}]
    found = Assignment(members, mixture(tmp_path)).of(np.arange(40))
    assert set(found[::2].tolist()) == {1} and set(found[1::2].tolist()) == {2}
    found = Assignment(members[:2] + members[3:], tmp_path / "mixture").of(np.arange(40))
    assert set(found[::2].tolist()) == {1} and set(found[1::2].tolist()) == {0, 2}


def test_a_source_that_no_member_teaches_is_refused_by_name(tmp_path):
    one = Assignment([{"sources": ["add"]}], mixture(tmp_path))
    assert one.of([0, 2]).tolist() == [0, 0]
    with pytest.raises(SettingsError, match=r"no member teaches the rows of say; .* add a member without sources"):
        one.of([0, 1])


def test_the_mean_is_that_of_probabilities_worked_out_by_hand():
    one, other = live(1), live(2)
    teachers = SeveralTeachers([one, other], ["a", "b"], WEIGHTS)
    logits = [torch.log(torch.tensor([[0.7, 0.1, 0.2]])), torch.log(torch.tensor([[0.1, 0.3, 0.6]])) + 5]
    for member in (one, other):  # three tokens in place of all
        member.reading.shared.size = 3
    found, mass, outside = teachers.mean(logits, diagnoses=False)
    # 0.25 x 0.7 + 0.75 x 0.1, 0.25 x 0.1 + 0.75 x 0.3, 0.25 x 0.2 + 0.75 x 0.6
    torch.testing.assert_close(found.exp(), torch.tensor([[0.25, 0.25, 0.5]]))
    assert mass is None and outside is None


def test_the_mean_of_models_is_that_of_their_softmaxes_at_every_position():
    teachers = SeveralTeachers([live(1), live(2)], ["a", "b"], WEIGHTS)
    rows = rendered(3)
    found, _, _ = teachers.mean(given_by(teachers, teachers.reading.tensors(rows, pad_id=0)), diagnoses=True)
    own = [torch.cat([alone(member, row) for row in rows]).softmax(-1) for member in teachers.members]
    torch.testing.assert_close(found.exp(), 0.25 * own[0] + 0.75 * own[1], atol=1e-6, rtol=1e-4)
    assert teachers.parameters == sum(member.parameters for member in teachers.members)


def test_each_row_has_its_own_teachers_logits_in_the_order_of_the_students_positions(tmp_path):
    teaches = Assignment(HALVES, mixture(tmp_path))
    teachers = SeveralTeachers([live(1), live(2)], ["a", "b"], [0.5, 0.5], teaches)
    rows = rendered(8)
    members = teaches.of([row.number for row in rows])
    assert set(members.tolist()) == {0, 1}
    batch = teachers.reading.tensors(rows, pad_id=0)
    found, mass, outside = teachers.own(given_by(teachers, batch), batch[MEMBER], diagnoses=True)
    wanted = torch.cat([alone(teachers.members[member], row) for member, row in zip(members, rows, strict=True)])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert mass is None and outside is None
    lengths = [len(row.input_ids) for row in rows]
    read = [sum(n for n, member in zip(lengths, members, strict=True) if member == place) for place in (0, 1)]
    assert teachers.reading.read_tokens(batch) == read


def test_text_that_the_student_generated_has_the_teacher_of_the_row_it_answers(tmp_path):
    teaches = Assignment(HALVES, mixture(tmp_path))
    teachers = SeveralTeachers([live(1), live(2)], ["a", "b"], [0.5, 0.5], teaches)
    rows = [answered([1, 9, 10], [11, 12], source=number) for number in range(8)]
    batch = teachers.reading.tensors(rows, pad_id=0)
    assert np.array_equal(batch[MEMBER].numpy()[::2], teaches.of(np.arange(8)))


def test_members_may_have_another_template_and_tokens_of_their_own(tmp_path):
    other = byte_tokenizer("<bos>" + CHAT_TEMPLATE)
    other.add_tokens(["<extra>"])
    own_rows = rendered(8, other)
    columns = {"input_ids": [row.input_ids.tolist() for row in own_rows], "row": list(range(8))}
    columns |= {name: [list(getattr(row, name)) for row in own_rows] for name in ("starts", "ends")}
    teaches = Assignment(HALVES, mixture(tmp_path))
    members = [live(1), live(2, other, [Rows(Dataset.from_dict(columns))], 263)]
    rows = rendered(8)
    teachers = SeveralTeachers(members, ["a", "b"], [0.5, 0.5], teaches)
    teachers.reading.check(rows)
    which = teaches.of([row.number for row in rows])
    wanted = torch.cat([alone(members[member], row) for member, row in zip(which, rows, strict=True)])
    batch = teachers.reading.tensors(rows, pad_id=0)
    found, mass, _ = teachers.own(given_by(teachers, batch), batch[MEMBER], diagnoses=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    # the second member alone has a token that is not the student's
    assert torch.all(mass[batch[MEMBER] == 0] == 0) and torch.all(mass[batch[MEMBER] == 1] > 0)
    together = SeveralTeachers(members, ["a", "b"], WEIGHTS)
    found, mass, _ = together.mean(given_by(together, together.reading.tensors(rows, pad_id=0)), diagnoses=True)
    own = [torch.cat([alone(member, row) for row in rows]).softmax(-1) for member in members]
    torch.testing.assert_close(found.exp(), 0.25 * own[0] + 0.75 * own[1], atol=1e-6, rtol=1e-4)
    assert torch.all(mass > 0)


def test_a_token_that_one_member_lacks_is_not_compared_where_it_teaches(tmp_path):
    student = byte_tokenizer()
    student.add_tokens(["<new>"])
    knows = LiveTeacher(tiny_llama(263, seed=1), student, student)
    lacks = LiveTeacher(tiny_llama(262, seed=2), TOKENIZER, student)
    teaches = Assignment(HALVES, mixture(tmp_path))
    teachers = SeveralTeachers([knows, lacks], ["a", "b"], [0.5, 0.5], teaches)
    assert teachers.reading.shared.never_generated == [262]
    batch = teachers.reading.tensors(rendered(8), pad_id=0)
    found, _, outside = teachers.own(given_by(teachers, batch), batch[MEMBER], diagnoses=False)
    assert torch.equal(outside[:, 262], batch[MEMBER] == 1) and not outside[:, :262].any()
    assert torch.all(found.softmax(-1)[batch[MEMBER] == 1, 262] == 0)
    together = SeveralTeachers([knows, lacks], ["a", "b"], WEIGHTS)
    found, _, outside = together.mean(given_by(together, together.reading.tensors(rendered(2), pad_id=0)), False)
    assert outside.nonzero().ravel().tolist() == [262] and torch.all(found.exp()[:, 262] == 0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(found)))


def test_flops_are_counted_by_what_each_member_reads(tmp_path):
    small, large = live(1), LiveTeacher(tiny_llama(hidden_size=64), TOKENIZER, TOKENIZER)
    teachers = SeveralTeachers([small, large], ["a", "b"], [0.25, 0.75], Assignment(HALVES, mixture(tmp_path)))
    assert teachers.flops_factor([10, 3]) == 10 * small.parameters + 3 * large.parameters
    assert teachers.parameters == round(0.25 * small.parameters + 0.75 * large.parameters)
