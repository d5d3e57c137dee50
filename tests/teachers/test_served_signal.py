"""A served teacher's signal on any text: what a live teacher says where every token is named, a bound where few are."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from harness.config.checks import SettingsError
from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase
from harness.config.teacher_signal import POLICY_GRADIENT, SUPPORTED, TAILS, TEXTS, Signal, check_signal
from harness.data.chat import render
from harness.data.sequences import Row, Rows, collate
from harness.teachers.served_signal import ServedSignal
from harness.teachers.signals import LiveTeacher
from harness.teachers.teacher import open_teacher
from harness.training.losses.objectives import Distributions, SparseDistributions, objective_for
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.fake_server import FakeServer, adopt

TOKENIZER, VOCABULARY = byte_tokenizer(), 262
ROWS = [Row(np.random.default_rng(n).integers(6, 262, 9 + n), [3], [9 + n]) for n in range(3)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny teacher behind a server: the server and the teacher's folder."""
    folder = tmp_path_factory.mktemp("served")
    with FakeServer(tiny_llama(seed=1)) as fake:
        adopted, _ = adopt(fake, save_tiny(folder / "tokenizer"), folder / "teacher")
        yield fake, adopted


def signal(folder, tokenizer=TOKENIZER, **values):
    rest = {name: values.pop(name) for name in ("own_rows", "rendering", "own_token_alone") if name in values}
    return ServedSignal(open_teacher(folder), tokenizer, Signal(**values), **rest)


def measured(phase, teacher, batch, student=None):
    """Loss and gradients of a micro-batch under one teacher."""
    model = student or tiny_llama()
    found = objective_for(phase, teacher, VOCABULARY).compare(model, batch)
    found.sum.backward()
    return found, [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("divergence", TOKEN_DIVERGENCES)
def test_with_every_token_named_it_is_the_live_teacher_in_loss_and_gradient(served, divergence):
    phase, batch = TrainingPhase(divergence=divergence, cross_entropy_weight=0.2).normal(), collate(ROWS, 0)
    one, gradients = measured(phase, signal(served[1], top_k=VOCABULARY), batch)
    other, expected = measured(phase, LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER), batch)
    assert one.count == other.count
    torch.testing.assert_close(one.sum / one.count, other.sum / other.count, atol=1e-5, rtol=0)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine / one.count, theirs / one.count, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("divergence", TOKEN_DIVERGENCES)
def test_with_few_tokens_named_it_is_a_bound_that_the_own_token_tightens(served, divergence):
    phase, batch = TrainingPhase(divergence=divergence).normal(), collate(ROWS, 0)
    whole = float(measured(phase, LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER), batch)[0].sum)
    bounds = [float(measured(phase, signal(served[1], top_k=k), batch)[0].sum) for k in (1, 8, 64)]
    assert bounds == sorted(bounds) and bounds[0] > 0 and bounds[-1] <= whole * (1 + 1e-5)
    sparse = signal(served[1], top_k=8).sparse_logits(batch)
    tokens = torch.cat([batch["labels"][i, 1:][batch["labels"][i, 1:] != -100] for i in range(len(ROWS))])
    own = [(sparse.ids[n] == tokens[n]).any() for n in range(len(tokens))]
    assert all(own), "the text's own token is named at each position"
    place = (sparse.ids == tokens[:, None]).int().argmax(1)
    torch.testing.assert_close(sparse.logprobs.gather(1, place[:, None])[:, 0], sparse.own)


def test_student_text_is_scored_like_any_other_and_prompts_are_not(served):
    batch = collate([Row(np.array([6, 7, 8, 20, 21, 22]), [3], [6], source=4)], 0)
    sparse = signal(served[1], top_k=4).sparse_logits(batch)
    live = LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER)
    mask = torch.tensor([[False, False, True, True, True, False]])
    expected = live.logits(batch["input_ids"], batch["attention_mask"], mask).log_softmax(-1)
    torch.testing.assert_close(sparse.own, expected.gather(1, torch.tensor([[20], [21], [22]]))[:, 0])
    torch.testing.assert_close(sparse.logprobs[:, 0], expected.max(-1).values)


def test_its_own_template_is_read_and_its_end_of_turn_is_the_students(served):
    student = byte_tokenizer()
    student.add_tokens(["<eos2>"], special_tokens=True)
    student.eos_token, student.chat_template = "<eos2>", student.chat_template.replace("<|end|>", "<eos2>")
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    mine, theirs = (render(one, conversation, 100) for one in (student, TOKENIZER))
    own = {"row": [0], "input_ids": [theirs.input_ids], "starts": [theirs.starts], "ends": [theirs.ends]}
    teacher = signal(served[1], student, top_k=VOCABULARY, own_rows=[Rows(Dataset.from_dict(own))])
    row = Row(np.array(mine.input_ids), mine.starts, mine.ends, number=0)
    batch = collate([row], 0)
    sparse = teacher.sparse_logits(batch | teacher.reading.tensors([row], 0))
    live = LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER)
    read = collate([Row(np.array(theirs.input_ids), theirs.starts, theirs.ends)], 0)
    scored = torch.zeros_like(read["input_ids"], dtype=torch.bool)
    scored[0, theirs.starts[0] - 1 : theirs.ends[0] - 1] = True
    expected = live.logits(read["input_ids"], read["attention_mask"], scored).log_softmax(-1)
    torch.testing.assert_close(sparse.own[-1], expected[-1, 5])
    at = (sparse.ids[-1] == 262).nonzero()[0, 0]
    torch.testing.assert_close(sparse.logprobs[-1, at], expected[-1, 5])
    assert 5 not in sparse.ids, "the student's other end of turn is compared with nothing"


def test_a_policy_gradient_asks_for_the_sampled_token_alone(served):
    phase = TrainingPhase(sequences="student", student_share=1.0, divergence="reverse_kl", estimator=POLICY_GRADIENT)
    batch = collate(ROWS, 0)
    live = LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER)
    one, gradients = measured(phase, signal(served[1], own_token_alone=True), batch)
    assert served[0].requests[-1]["prompt_logprobs"] == 0
    other, expected = measured(phase, live, batch)
    torch.testing.assert_close(one.sum, other.sum, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_server_that_cannot_score_is_refused_in_one_sentence(served):
    served[0].without = {"prompt_logprobs"}
    try:
        with pytest.raises(SettingsError, match=r"prompt_logprobs") as refused:
            signal(served[1]).sparse_logits(collate(ROWS, 0))
        assert "\n" not in str(refused.value)
    finally:
        served[0].without = set()


KINDS = {
    "live": lambda tail: Signal(),
    "served": lambda tail: Signal(tail=tail),
    "top_k": lambda tail: Signal(kind="top_k", tail=tail),
    "sampled": lambda tail: Signal(kind="sampled"),
}


@pytest.mark.parametrize("column", SUPPORTED)
@pytest.mark.parametrize("divergence", [*TOKEN_DIVERGENCES, POLICY_GRADIENT])
def test_the_table_of_signals_divergences_and_texts_is_what_is_refused(column, divergence):
    kind, _, tail = column.rstrip("]").partition("[")
    asked = KINDS[kind](tail or TAILS[0])
    for sequences in ("gold", "teacher", "synthetic", "mixed", "student", "interleaved"):
        values = {"divergence": divergence}
        if divergence == POLICY_GRADIENT:
            if sequences != "student":
                continue
            values = {"divergence": "reverse_kl", "estimator": POLICY_GRADIENT}
        phase = TrainingPhase(sequences=sequences, student_share=float(sequences == "student"), **values)
        works = SUPPORTED[column][divergence].works and sequences in TEXTS[kind]
        if works:
            check_signal(asked, phase, served=kind == "served")
            continue
        with pytest.raises(SettingsError):
            check_signal(asked, phase, served=kind == "served")


def test_a_policy_gradient_needs_text_that_the_student_sampled_as_it_is():
    right = {"sequences": "student", "student_share": 1.0, "divergence": "reverse_kl", "estimator": POLICY_GRADIENT}
    TrainingPhase(**right)
    for name, value in {
        "sequences": "gold",
        "student_share": 0.5,
        "sampling_temperature": 0.7,
        "sampling_top_p": 0.9,
        "divergence_temperature": 2.0,
    }.items():
        with pytest.raises(SettingsError, match=rf"method\.{name}=.*method\.estimator=full"):
            TrainingPhase(**{**right, name: value})


def test_kinds_of_objectives_follow_from_what_the_teacher_gives(served):
    phase = TrainingPhase(divergence="forward_kl")
    asked = objective_for(phase, signal(served[1]), VOCABULARY)
    assert isinstance(asked, SparseDistributions) and asked.queries_teacher, "it reads the text of each step"
    live = objective_for(phase, LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER), VOCABULARY)
    assert type(live) is Distributions
