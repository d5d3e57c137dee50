"""Losses across tokenizers against independent ones, and the objective against a loop over unpadded rows."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import rel_entr

from harness.config.budget import Budget
from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.chat import render
from harness.data.sequences import TURN, Row, Rows, collate, visits
from harness.teachers.signals import LiveTeacher
from harness.training.losses.alignment import align
from harness.training.losses.cross_tokenizer import CrossTeacher, rows_of, spans, token_logprobs, uld
from harness.training.losses.objectives import objective_for
from harness.training.trainer import TrainingData, TrainingSettings, fit
from tests.doubles import bpe_tokenizer, byte_tokenizer, tiny_llama
from tests.thinking import chat

BYTES, BPE, SENTENCEPIECE = byte_tokenizer(), bpe_tokenizer("byte-level"), bpe_tokenizer("metaspace")
ANSWERS = ["the answer", "42", "the other answers are 1234567", "naïve 日本 the end", "lines", "the the the"]
ULD = TrainingPhase(divergence="uld", cross_entropy_weight=1.0, cross_tokenizer_weight=1.5)
SPANS = TrainingPhase(divergence="spans", span_temperature=2.0)


def dataset(tokenizer, answers=ANSWERS, max_length=500, first=100):
    """Rows of one or two turns, numbered from `first`, as a subset stage writes them."""
    columns = {"row": [], "input_ids": [], "starts": [], "ends": []}
    for number, answer in enumerate(answers, first):
        turns = [answer, "yes"] if number % 2 else [answer]
        messages = [
            {"role": role, "content": text} for turn in turns for role, text in (("user", "q"), ("assistant", turn))
        ]
        found = render(tokenizer, messages, max_length)
        values = (number, found.input_ids, found.starts, found.ends)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    return Dataset.from_dict(columns)


def teacher(tokenizer=BPE, seed=1, rows=None, student=BYTES):
    # a head padded beyond the vocabulary, as many have; nothing may look at the padding
    model = tiny_llama(len(tokenizer) + 3, seed=seed)
    return CrossTeacher(model, tokenizer, student, Rows(rows or dataset(tokenizer)))


def student(seed=0):
    return tiny_llama(len(BYTES) + 5, seed=seed)


def rows(tokenizer=BYTES):
    return list(Rows(dataset(tokenizer)))


def total(stage, wise=None, some=None, model=None):
    objective = objective_for(stage, wise or teacher(), len(BYTES))
    return objective.compare(model or student(), collate(some or rows(), pad_id=0))


def by_hand(stage, wise, given=None):
    """The same sum, a row and a chunk at a time, on unpadded rows and whole forward passes."""
    model, found = student(), 0.0
    for own in rows():
        read = wise.rendering(own.number)
        chunks = align(own, read, wise.spellings)
        q, p = (
            net(input_ids=torch.tensor(one.input_ids.astype(np.int64))[None]).logits[0, :, :size].log_softmax(-1)
            for net, one, size in ((model, own, len(BYTES)), (wise.model, read, wise.vocabulary))
        )
        for (start, end), (teacher_start, teacher_end) in zip(chunks.student, chunks.teacher, strict=True):
            if stage.divergence == "uld":
                one, other = (sorted(x.exp().tolist()) for x in (q[start - 1], p[teacher_start - 1]))
                size = max(len(one), len(other))
                one, other = ([0.0] * (size - len(x)) + x for x in (one, other))
                value = sum(abs(a - b) for a, b in zip(one, other, strict=True))
            else:
                ours = sum(q[t - 1, own.input_ids[t]].item() for t in range(start, end))
                theirs = sum(p[t - 1, read.input_ids[t]].item() for t in range(teacher_start, teacher_end))
                tau = stage.span_temperature
                ours, theirs = math.exp(ours / tau), math.exp(theirs / tau)
                value = tau * float(rel_entr(theirs, ours) + rel_entr(1 - theirs, 1 - ours))
            found += stage.cross_tokenizer_weight * value
        for start, end in zip(own.starts, own.ends, strict=True):
            for t in range(start, end):
                found -= stage.cross_entropy_weight * q[t - 1, own.input_ids[t]].item()
    return found


def test_uld_is_the_distance_of_sorted_probabilities_worked_by_hand():
    ours = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    theirs = torch.tensor([[0.25, 0.75], [0.8, 0.2]]).log()
    found = uld(ours, theirs)
    # .7 .2 .1 against .75 .25 0, then .8 .1 .1 against .8 .2 0
    assert found.sum.item() == pytest.approx(0.05 + 0.05 + 0.1 + 0 + 0.1 + 0.1) and found.count == 2
    torch.testing.assert_close(uld(theirs, ours).sum, found.sum)


def test_uld_agrees_with_trl_where_every_token_meets_one():
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=False,
        uld_token_merge_strategy="bayesian",
    )
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(1, 7, 11, generator=draw) * 2, torch.randn(1, 6, 17, generator=draw) * 2
    labels = torch.tensor([[-100, -100, -100, 1, 2, 3, 4]])
    expected = ULDLoss(config)(ours, theirs, labels, labels[:, 1:], labels.clamp(0), labels[:, 1:].clamp(0))
    torch.testing.assert_close(uld(ours[0, 2:6], theirs[0, 1:5]).sum / 4, expected)  # theirs is a mean


@pytest.mark.parametrize("temperature", [1.0, 3.0, 100.0])
def test_spans_is_the_binary_kl_of_chunk_likelihoods_times_the_temperature(temperature):
    ours, theirs = np.array([-0.3, -5.0, -40.0, -2.0]), np.array([-1.2, -0.01, -20.0, -2.0])
    q, p = np.exp(ours / temperature), np.exp(theirs / temperature)
    expected = temperature * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum()
    found = spans(torch.tensor(ours), torch.tensor(theirs), temperature)
    assert found.sum.item() == pytest.approx(expected, rel=1e-4) and found.count == 4


def test_spans_at_a_high_temperature_is_its_limit():
    # tau KL(p^(1/tau) || q^(1/tau)) -> log p - log q + log p log(log q / log p)
    ours, theirs = torch.tensor([-3.0, -7.0]), torch.tensor([-1.0, -9.0])
    limit = (theirs - ours + theirs * (ours / theirs).log()).sum()
    torch.testing.assert_close(spans(ours, theirs, 1e5).sum, limit, rtol=1e-3, atol=1e-4)


def test_losses_have_their_own_gradient():
    draw = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 5, generator=draw, dtype=torch.double, requires_grad=True)
    theirs = torch.randn(3, 7, generator=draw, dtype=torch.double)
    tokens = torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(lambda x: uld(x, theirs).sum, ours)
    for temperature in (1.0, 100.0):
        wise = token_logprobs(theirs, tokens)
        assert torch.autograd.gradcheck(lambda x: spans(token_logprobs(x, tokens), wise, temperature).sum, ours)  # noqa: B023


def test_certain_chunks_give_finite_losses_and_gradients():
    ours = torch.tensor([0.0, 0.0, -90.0, -1e-7], requires_grad=True)
    found = spans(ours, torch.tensor([0.0, -3.0, 0.0, -200.0]), 1.0)
    found.sum.backward()
    assert math.isfinite(found.sum.item()) and ours.grad.isfinite().all()
    assert ours.grad[1] > 0 and ours.grad[2] < 0


@pytest.mark.parametrize("stage", [ULD, SPANS, TrainingPhase(divergence="uld", cross_entropy_weight=0.5)])
@pytest.mark.parametrize("tokenizer", [BPE, SENTENCEPIECE], ids=["byte-level", "metaspace"])
def test_an_objective_is_the_loop_written_out(stage, tokenizer):
    wise = teacher(tokenizer)
    found = total(stage, wise)
    assert found.sum.item() == pytest.approx(by_hand(stage, wise), rel=1e-4)
    assert found.count == sum(sum(one.ends) - sum(one.starts) for one in rows())


@pytest.mark.parametrize("divergence", ["uld", "spans"])
def test_a_student_that_is_its_teacher_has_no_divergence(divergence):
    wise = CrossTeacher(student(), BYTES, BYTES, Rows(dataset(BYTES)))
    model = student().train()
    found = total(TrainingPhase(divergence=divergence), wise, model=model)
    found.sum.backward()
    gradient = max(weight.grad.abs().max().item() for weight in model.parameters())
    assert found.diagnostics["chunks"] == found.count, "one tokenizer twice gives chunks of one token"
    if divergence == "spans":  # an absolute value has a kink at 0
        assert gradient == pytest.approx(0, abs=1e-5)
    assert found.sum.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("stage", [ULD, SPANS])
def test_another_teacher_gives_another_loss_and_only_the_student_has_a_gradient(stage):
    wise, model = teacher(), student()
    found = total(stage, wise, model=model)
    assert found.sum.item() != pytest.approx(total(stage, teacher(seed=2)).sum.item(), rel=1e-3)
    found.sum.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert all(weight.grad is None for weight in wise.model.parameters())


@pytest.mark.parametrize("stage", [ULD, SPANS, TrainingPhase(divergence="spans", control="shuffled")])
def test_splitting_a_batch_and_padding_it_move_nothing(stage):
    whole = total(stage)
    parts = [total(stage, some=[one]) for one in rows()]
    assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item(), rel=1e-4)
    assert sum(part.count for part in parts) == whole.count
    nll = sum(part.diagnostics["student_nll"].item() for part in parts)
    assert nll == pytest.approx(whole.diagnostics["student_nll"].item(), rel=1e-4)


@pytest.mark.parametrize("divergence", ["uld", "spans"])
def test_a_shuffled_teacher_says_to_every_row_what_it_says_about_another(divergence):
    wise = teacher()
    plain = total(TrainingPhase(divergence=divergence), wise)
    objective = objective_for(TrainingPhase(divergence=divergence, control="shuffled"), wise, len(BYTES))
    assert sorted(objective.permutation) == list(range(len(ANSWERS)))
    assert all(given != own for own, given in enumerate(objective.permutation))
    found = objective.compare(student(), collate(rows(), pad_id=0))
    assert found.sum.item() != pytest.approx(plain.sum.item(), rel=1e-3)
    assert (found.count, found.diagnostics["chunks"]) == (plain.count, plain.diagnostics["chunks"])
    alone = objective.compare(student(), collate(rows()[:1], pad_id=0))
    objective.permutation = np.arange(len(ANSWERS))  # each row its own: the plain loss again
    torch.testing.assert_close(objective.compare(student(), collate(rows(), pad_id=0)).sum, plain.sum)
    assert alone.sum.item() != pytest.approx(
        total(TrainingPhase(divergence=divergence), wise, some=rows()[:1]).sum.item(), rel=1e-3
    )


def test_what_a_shuffled_row_hears_is_another_rows_likelihoods_token_by_token():
    # both rows are bytes on both sides, so every chunk is a token: row 100 ("ab") hears row 101 ("xyz", "yes")
    data = dataset(BYTES, ["ab", "xyz"])
    wise = CrossTeacher(student(seed=3), BYTES, BYTES, Rows(data))
    own, other = Rows(data)
    stage = TrainingPhase(divergence="spans", control="shuffled")
    found = objective_for(stage, wise, len(BYTES)).compare(student(), collate([own], pad_id=0))
    heard = []
    for net, one in ((student(), own), (wise.model, other)):
        ids = torch.tensor(one.input_ids.astype(np.int64))
        logprobs = net(input_ids=ids[None]).logits[0, :-1, : len(BYTES)].log_softmax(-1)
        said = logprobs.gather(1, ids[1:, None])[:, 0]
        heard.append(torch.cat([said[start - 1 : end - 1] for start, end in zip(one.starts, one.ends, strict=True)]))
    torch.testing.assert_close(found.sum, spans(heard[0], heard[1][:3]).sum)


def test_a_row_that_cannot_be_compared_keeps_its_cross_entropy_and_is_counted():
    wise = teacher(rows=dataset(BPE, ["the answer", "of something else"]))
    objective = objective_for(ULD, wise, len(BYTES))
    own = rows()
    found = objective.compare(student(), collate(own[2:4], pad_id=0))  # rows 102 and 103 have no rendering
    torch.testing.assert_close(found.sum, found.diagnostics["student_nll"])
    assert objective.rows_left_out == 2 and objective.teacher_tokens == 0
    objective.compare(student(), collate(own[:1], pad_id=0))
    assert objective.teacher_tokens == len(wise.rows[0].input_ids)
    mixed = objective.compare(student(), collate([own[2], own[0]], pad_id=0))
    apart = [objective.compare(student(), collate([one], pad_id=0)).sum.item() for one in (own[2], own[0])]
    assert mixed.sum.item() == pytest.approx(sum(apart), rel=1e-5)
    silent = objective_for(SPANS, wise, len(BYTES)).compare(student(), collate(own[2:3], pad_id=0))
    silent.sum.backward()
    assert silent.sum.item() == 0


def test_text_without_a_rendering_and_controls_without_meaning_are_refused_by_name():
    with pytest.raises(SettingsError, match="sequences='student'"):
        objective_for(TrainingPhase(sequences="student", student_share=0.5, divergence="uld"), teacher(), 262)
    with pytest.raises(SettingsError, match="control='unigram'"):
        objective_for(TrainingPhase(divergence="spans", control="unigram"), teacher(), 262)
    with pytest.raises(SettingsError, match="larger data_frac"):
        one = teacher(rows=dataset(BPE, ["alone"]))
        objective_for(TrainingPhase(divergence="spans", control="shuffled"), one, 262)
    with pytest.raises(ValueError, match="without a number"):
        some = [one.__class__(one.input_ids, one.starts, one.ends) for one in rows()]
        total(ULD, some=some)


def test_the_two_kinds_of_teacher_are_not_taken_for_each_other():
    with pytest.raises(ValueError, match="needs a CrossTeacher"):
        objective_for(ULD, LiveTeacher(tiny_llama(), BYTES, BYTES), 262)
    with pytest.raises(ValueError, match="reads the student's tokens"):
        objective_for(TrainingPhase(divergence="forward_kl"), teacher(), 262)


def test_rows_come_back_from_a_batch():
    for own, found in zip(rows(), rows_of(collate(rows(), pad_id=5)), strict=True):
        assert found.input_ids.tolist() == own.input_ids.tolist()
        assert (found.starts, found.ends, found.number) == (own.starts, own.ends, own.number)


@pytest.mark.parametrize("stage", [ULD, TrainingPhase(divergence="spans", span_temperature=100.0)])
def test_a_student_learns_from_a_teacher_of_another_tokenizer(tmp_path, stage):
    data, wise = dataset(BYTES), teacher(SENTENCEPIECE)
    budget = Budget(batch_size=4, learning_rate=1e-2, warmup_ratio=0.0, schedule="constant")
    report = fit(
        student(),
        BYTES,
        TrainingData(data, visits(len(data), 12, 4, seed=0)),
        TrainingSettings(budget, stage, Machine(device="cpu", micro_batch_size=2), seed=0),
        out=tmp_path,
        teacher=wise,
    )
    assert report.last_loss < 0.8 * report.first_loss
    read = [len(wise.rendering(100 + place).input_ids) for place in visits(len(data), 12, 4, seed=0).ravel()]
    assert report.teacher_tokens == sum(read) and report.teacher_seconds > 0


def test_a_turn_of_the_student_meets_the_same_turn_of_a_teachers_conversation():
    conversation = chat("q", "the answer", "r", "the end")
    whole = render(BPE, conversation, 500)
    columns = {"row": [7], "input_ids": [whole.input_ids], "starts": [whole.starts], "ends": [whole.ends]}
    wise = teacher(rows=Dataset.from_dict(columns))
    parts = []
    for turn in (0, 1):
        one = render(BYTES, conversation[: 2 * turn + 2], 500)
        ids = np.asarray(one.input_ids, dtype=np.int32)
        parts.append(Row(ids, one.starts[-1:], one.ends[-1:], 7 + turn * TURN))
    second = wise.rendering(7 + TURN)
    assert (second.starts, second.ends) == (whole.starts[1:], whole.ends[1:])
    assert wise.rendering(7 + 2 * TURN) is None and wise.rendering(8) is None
    found = wise.coverage(parts)
    assert (found.rows, found.rows_left_out, found.rows_missing) == (2, 0, 0)
    assert total(SPANS, wise, parts).sum > 0
