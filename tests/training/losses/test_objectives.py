"""Objectives: numbers of a model and a teacher together, in chunks or not, under wrappers, with controls."""

import gc
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional

from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase
from harness.data.sequences import Row, collate
from harness.teachers.signals import LiveTeacher
from harness.training.losses.chunked import positions_at_once
from harness.training.losses.controls import permutation
from harness.training.losses.objectives import Distributions, objective_for
from tests.doubles import byte_tokenizer, tiny_llama
from tests.models.test_logits import tiny, with_adapters

VOCABULARY = 262
TOKENIZER = byte_tokenizer()
FORWARD = TrainingPhase(divergence="forward_kl")
CHUNK = 4  # positions at a time


def batch(limit=VOCABULARY):
    generator = torch.Generator().manual_seed(0)
    rows = [
        Row(torch.randint(6, limit, (length,), generator=generator).numpy(), [start], [length])
        for length, start in ((9, 4), (14, 3), (5, 0))
    ]
    return collate(rows, pad_id=0)


def teacher(seed=1, model=None):
    return LiveTeacher(model or tiny_llama(seed=seed), TOKENIZER, TOKENIZER)


def measured(stage=FORWARD, model=None, wise=None, chunk=None, data=None, vocabulary=VOCABULARY, **named):
    """The loss, the student's gradients and the divergence of one micro-batch."""
    model = model or tiny_llama()
    wise = wise or teacher()
    objective = Distributions(stage.normal(), wise, vocabulary, chunk=chunk, **named)
    model.zero_grad()
    found = objective.compare(model, data or batch())
    (2 * found.sum).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return found, gradients, objective


@contextmanager
def one_process():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def spied(model):
    """The largest number of positions the output layer was asked at once."""
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    return seen


@pytest.mark.parametrize("divergence", ["cross_entropy", *TOKEN_DIVERGENCES])
@pytest.mark.parametrize("positions", [1, 4, 7])
def test_in_chunks_the_loss_and_every_gradient_are_the_same(divergence, positions):
    stage = TrainingPhase(divergence=divergence, cross_entropy_weight=0.2)
    whole, gradients, _ = measured(stage)
    model = tiny_llama()
    seen = spied(model)
    found, chunked, objective = measured(stage, model, chunk=positions)
    assert found.sum.item() == pytest.approx(whole.sum.item(), rel=1e-5) and found.count == whole.count == 20
    torch.testing.assert_close(chunked, gradients, rtol=1e-4, atol=1e-5)
    assert objective.warnings == [] and max(seen[1:]) <= max(positions, 4)  # four: the trial


@pytest.mark.parametrize("kind", ["Gemma2", "Cohere", "Granite"])
def test_models_that_change_their_logits_are_compared_as_their_forward_says(kind):
    data = batch(limit=64)
    wise = tiny(kind)
    torch.nn.init.normal_(wise.get_output_embeddings().weight)
    found, gradients, objective = measured(
        model=tiny(kind), wise=teacher(model=wise), chunk=3, data=data, vocabulary=64
    )
    model = tiny(kind)
    inputs = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
    mask = data["labels"][:, 1:] != -100
    p, q = (m(**inputs).logits[:, :-1][mask].log_softmax(-1) for m in (wise, model))
    loss = (p.detach().exp() * (p.detach() - q)).sum()
    assert found.sum.item() == pytest.approx(loss.item(), rel=1e-4)
    (2 * loss).backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)
    assert objective.warnings == []


def test_adapters_alone_are_trained_and_the_same_in_chunks():
    models = [with_adapters(tiny("Llama")) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    runs = [
        measured(model=model, wise=teacher(model=tiny("Llama")), chunk=chunk, data=batch(limit=64), vocabulary=64)
        for model, chunk in zip(models, (None, 4), strict=True)
    ]
    assert runs[0][0].sum.item() == pytest.approx(runs[1][0].sum.item(), rel=1e-5)
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=1e-4, atol=1e-6)
    assert runs[0][1] and all("lora" in name for name in runs[1][1])


def gradients_under_ddp(find_unused_parameters):
    model = torch.nn.parallel.DistributedDataParallel(tiny_llama(), find_unused_parameters=find_unused_parameters)
    for _ in range(2):  # a second step fails where the first left its bookkeeping undone
        _, gradients, _ = measured(model=model, chunk=CHUNK)
    return gradients


@pytest.mark.parametrize("unused", [True, False])
def test_in_chunks_under_distributed_data_parallel(unused):
    _, expected, _ = measured(chunk=CHUNK)
    with one_process():
        gradients = gradients_under_ddp(unused)
        gc.collect()  # a wrapper that outlived its group could wait for gloo's thread, and that for the interpreter
    torch.testing.assert_close(gradients, {f"module.{name}": gradient for name, gradient in expected.items()})


def test_in_chunks_under_autocast_and_with_checkpointed_layers():
    runs = []
    for chunk in (None, CHUNK):
        model = tiny_llama().train()
        model.gradient_checkpointing_enable()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            runs.append(measured(model=model, chunk=chunk))
    (whole, gradients, _), (found, chunked, _) = runs
    assert found.sum.item() == pytest.approx(whole.sum.item(), rel=2e-2)
    assert chunked.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (chunked[name] - gradient).norm() <= 0.05 * gradient.norm(), name


def test_a_head_that_cannot_be_split_is_told_and_compared_whole():
    model = tiny_llama()
    plain = type(model).forward

    def forward(input_ids=None, **named):
        output = plain(model, input_ids=input_ids, **named)
        output.logits = output.logits * (1 + input_ids.float().mean() / 100)
        return output

    model.forward = forward
    whole, gradients, _ = measured(model=model)
    found, chunked, objective = measured(model=model, chunk=CHUNK)
    assert found.sum.item() == whole.sum.item()
    torch.testing.assert_close(chunked, gradients, rtol=0, atol=0)
    assert len(objective.warnings) == 1 and "student" in objective.warnings[0]


@pytest.mark.parametrize("divergence", TOKEN_DIVERGENCES)
def test_a_teacher_equal_to_the_student_gives_no_loss_and_no_gradient(divergence):
    found, gradients, _ = measured(TrainingPhase(divergence=divergence), wise=teacher(seed=0), chunk=CHUNK)
    assert found.sum.item() == pytest.approx(0, abs=1e-4)
    assert max(gradient.abs().max() for gradient in gradients.values()) < 1e-4


@pytest.mark.parametrize("divergence", TOKEN_DIVERGENCES)
def test_another_teacher_gives_another_loss(divergence):
    losses = [measured(TrainingPhase(divergence=divergence), wise=teacher(seed), chunk=CHUNK)[0].sum for seed in (1, 2)]
    assert abs(losses[0] - losses[1]) > 0.01


@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_logits_that_are_not_scored_change_nothing(chunk):
    data = batch()
    padded = {
        "input_ids": functional.pad(data["input_ids"], (0, 3), value=77),
        "attention_mask": functional.pad(data["attention_mask"], (0, 3)),
        "labels": functional.pad(data["labels"], (0, 3), value=-100),
    }
    found, gradients, _ = measured(data=data, chunk=chunk)
    other, others, _ = measured(data=padded, chunk=chunk)
    assert other.sum.item() == pytest.approx(found.sum.item(), rel=1e-6)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-5)

    model = tiny_llama()
    unscored = data["labels"][:, 1:] == -100

    def perturb(_, args):
        states = args[0].clone()
        if states.shape[:2] == data["input_ids"].shape:
            states[:, :-1][unscored] += 5.0
            states[:, -1] += 5.0
        return (states,)

    model.get_output_embeddings().register_forward_pre_hook(perturb)  # runs before the states are cut
    again, same, _ = measured(model=model, data=data, chunk=chunk)
    assert again.sum.item() == found.sum.item()
    torch.testing.assert_close(same, gradients, rtol=0, atol=0)


def test_padding_on_the_left_gives_the_same_loss():
    data = batch()
    lengths = data["attention_mask"].sum(1).tolist()
    left = {name: tensor.clone() for name, tensor in data.items()}
    for i, length in enumerate(lengths):
        for name in ("input_ids", "attention_mask", "labels"):
            left[name][i] = torch.roll(data[name][i], data[name].shape[1] - length)
    # a first position never has a label, so rolling brings none before the text
    found, other = (measured(data=one, chunk=CHUNK)[0].sum.item() for one in (data, left))
    assert other == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("chunk", [None, 4])
def test_heads_padded_beyond_the_vocabulary_are_cut_alike(chunk):
    wise, model = tiny_llama(seed=1, vocab_size=VOCABULARY + 10), tiny_llama(vocab_size=VOCABULARY + 2)
    wise.get_output_embeddings().weight.data[VOCABULARY:] = 9.0  # padding that would take most of the mass
    data = batch()
    found, _, _ = measured(model=model, wise=teacher(model=wise), data=data, chunk=chunk)
    inputs = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
    mask = data["labels"][:, 1:] != -100
    with torch.no_grad():
        p, q = (m(**inputs).logits[:, :-1][mask][:, :VOCABULARY].log_softmax(-1) for m in (wise, model))
    assert found.sum.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)


@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_the_shuffled_control_compares_with_another_positions_distribution(chunk):
    data, wise, model = batch(), tiny_llama(seed=1), tiny_llama()
    found, _, _ = measured(TrainingPhase(divergence="forward_kl", control="shuffled"), data=data, seed=5, chunk=chunk)
    inputs = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
    mask = data["labels"][:, 1:] != -100
    with torch.no_grad():
        p, q = (m(**inputs).logits[:, :-1][mask].log_softmax(-1) for m in (wise, model))
    p = p[permutation(data, len(p), seed=5)]
    assert found.sum.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)
    assert found.sum.item() != pytest.approx(measured(data=data)[0].sum.item(), rel=1e-3)


@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_the_unigram_control_is_one_distribution_everywhere_and_asks_no_teacher(chunk):
    unigram = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    stage = TrainingPhase(divergence="reverse_kl", control="unigram").normal()
    assert not stage.queries_teacher and not stage.uses_teacher
    objective = Distributions(stage, None, VOCABULARY, unigram=unigram, chunk=chunk)
    data, model = batch(), tiny_llama()
    found = objective.compare(model, data)
    with torch.no_grad():
        logits = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
        q = logits[:, :-1][data["labels"][:, 1:] != -100].log_softmax(-1)
    assert found.sum.item() == pytest.approx((q.exp() * (q - unigram)).sum().item(), rel=1e-4)
    assert not objective.queries_teacher and objective.teacher_seconds == 0


def test_a_missing_teacher_or_missing_counts_are_errors():
    with pytest.raises(ValueError, match="needs a teacher"):
        objective_for(FORWARD, None, VOCABULARY)
    with pytest.raises(ValueError, match="needs the counts"):
        objective_for(TrainingPhase(divergence="tvd", control="unigram"), teacher(), VOCABULARY)


@pytest.mark.parametrize("chunk", [None, CHUNK])
def test_diagnostics_are_made_when_asked_and_are_the_same_in_chunks(chunk):
    end = int(batch()["labels"][0, 8])
    objective = Distributions(FORWARD, teacher(), VOCABULARY, end_of_turn=end, chunk=chunk)
    assert set(objective.compare(tiny_llama(), batch()).diagnostics) == {"student_nll"}
    objective.diagnoses = True
    found = objective.compare(tiny_llama(), batch()).diagnostics
    assert found["ends"] == 1 and 0 < found["teacher_end_mass"] < 1
    assert 0 < found["teacher_entropy"] < 20 * torch.tensor(VOCABULARY).log()
    assert {"student_entropy", "teacher_mass", "student_mass", "overlap", "argmax_agreement"} <= found.keys()
    assert not any(total.requires_grad for total in found.values())
    whole = Distributions(FORWARD, teacher(), VOCABULARY, end_of_turn=end)
    whole.diagnoses = True
    for name, total in whole.compare(tiny_llama(), batch()).diagnostics.items():
        assert found[name].item() == pytest.approx(total.item(), rel=1e-4), name


def test_a_small_vocabulary_is_compared_in_one_piece_and_a_large_one_is_not():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert positions_at_once(cpu, 500) > 32 * 500
    assert 1 < positions_at_once(cpu, 128256) < 200 < positions_at_once(cuda, 128256)
    model = tiny_llama()
    seen = spied(model)
    measured(model=model)
    assert seen == [20]
