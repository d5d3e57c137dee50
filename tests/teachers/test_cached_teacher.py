"""A cached teacher: it says what the live one says, whatever the order, and nothing of other rows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from harness.config.budget import Budget
from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal
from harness.data.sequences import Rows, collate, visits
from harness.models.loading import load_model
from harness.stages.logit_cache import make_cache
from harness.teachers.signals import CachedTeacher, LiveTeacher
from harness.training.losses.objectives import SparseDistributions, objective_for
from harness.training.trainer import TrainingData, TrainingSettings, fit
from tests.doubles import CHAT_TEMPLATE, byte_tokenizer, save_tiny, tiny_llama

TOKENIZER = byte_tokenizer()
ALL = Signal(kind="top_k", top_k=262)
FORWARD = TrainingPhase(divergence="forward_kl")
CPU = Machine(device="cpu")


def rows_of(numbers):
    """Rows of unequal length, two turns each, whose tokens follow from their number."""
    columns = {"row": [], "id": [], "input_ids": [], "starts": [], "ends": []}
    for number in numbers:
        prompt, answer = 2 + number % 5, 1 + (number * 7) % 11
        half = np.random.default_rng(number).integers(6, 262, 2 * (prompt + answer)).tolist()
        turn = prompt + answer
        values = (number, f"r{number}", half, [prompt, turn + prompt], [turn, 2 * turn])
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    return Dataset.from_dict(columns)


def make(folder, rows, teacher, signal=ALL, seed=0):
    rows.save_to_disk(folder / "rows" / "train")
    (folder / "cache").mkdir()
    settings = {"signal": signal.stored(), "seed": seed, "max_length": 64}
    make_cache(settings, {"rows": folder / "rows", "teacher": teacher}, folder / "cache", CPU)
    return folder / "cache"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A teacher and its caches of two blocks of rows, all tokens stored; never written to."""
    folder = tmp_path_factory.mktemp("world")
    teacher = save_tiny(folder / "teacher", seed=1)
    blocks = []
    for name, numbers in (("a", range(30, 37)), ("b", range(5, 10))):
        (folder / name).mkdir()
        blocks.append(make(folder / name, rows_of(numbers), teacher))
    return teacher, blocks


def batch_of(numbers):
    return collate(list(Rows(rows_of(numbers))), pad_id=0)


@pytest.fixture
def copied(world, tmp_path):
    """A copy of one cache whose files a test may change."""
    shutil.copytree(world[1][0], tmp_path / "cache")

    def change(**values):
        meta = json.loads((tmp_path / "cache" / "meta.json").read_text())
        (tmp_path / "cache" / "meta.json").write_text(json.dumps(meta | values))
        return tmp_path / "cache"

    return change


@pytest.mark.parametrize(
    "stage", [FORWARD, TrainingPhase(divergence="jsd"), replace(FORWARD, cross_entropy_weight=0.5)]
)
def test_a_fit_on_a_cache_of_all_tokens_is_the_fit_on_the_live_teacher(world, tmp_path, stage):
    folder, blocks = world
    live = LiveTeacher(load_model(folder), TOKENIZER, TOKENIZER)
    cached = CachedTeacher(blocks, ALL, TOKENIZER, teacher=folder)
    rows = rows_of([*range(5, 10), *range(30, 37)])
    budget = Budget(batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, schedule="constant")
    found = []
    for teacher in (live, cached):
        model = tiny_llama()
        report = fit(
            model,
            TOKENIZER,
            TrainingData(rows, visits(len(rows), 4, 4, seed=0)),
            TrainingSettings(budget, stage, Machine(device="cpu", micro_batch_size=2), seed=0),
            out=tmp_path,
            teacher=teacher,
        )
        losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        found.append((report, losses, torch.cat([weight.detach().ravel() for weight in model.parameters()])))
    # log-probabilities of about -8 are stored to 2**-9; weights move by the learning rate at most, four times
    assert found[1][1] == pytest.approx(found[0][1], rel=2e-3)
    moved = (found[0][2] - torch.cat([weight.detach().ravel() for weight in tiny_llama().parameters()])).abs().mean()
    assert (found[0][2] - found[1][2]).abs().mean() < 0.02 * moved
    assert (found[1][0].teacher_tokens, found[1][0].teacher_flops) == (0, 0), "no teacher read anything"
    assert found[1][0].trained_tokens == found[0][0].trained_tokens and found[1][0].teacher_seconds > 0


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_shuffled_rows_have_the_loss_they_have_alone(world, tmp_path, kind):
    folder, _ = world
    signal = Signal(kind=kind, top_k=5, samples=8)
    teacher = CachedTeacher([make(tmp_path, rows_of(range(12)), folder, signal)], signal, TOKENIZER)
    objective, model = objective_for(FORWARD, teacher, len(TOKENIZER)), tiny_llama()
    assert isinstance(objective, SparseDistributions)
    alone = {number: objective.compare(model, batch_of([number])) for number in range(12)}
    order = [7, 2, 11, 0, 5]
    together = objective.compare(model, batch_of(order))
    assert together.count == sum(alone[number].count for number in order)
    assert together.sum.item() == pytest.approx(sum(alone[number].sum.item() for number in order), rel=1e-5)
    assert len({round(found.sum.item(), 4) for found in alone.values()}) == 12


def test_chunks_of_positions_make_the_same_loss_and_gradients(world):
    teacher, batch = CachedTeacher(world[1], ALL, TOKENIZER), batch_of([33, 6, 31])
    found = []
    for chunk in (10**9, 5):
        model = tiny_llama()
        value = SparseDistributions(FORWARD, teacher, 262, chunk=chunk).compare(model, batch).sum
        value.backward()
        found.append([value.detach(), *(weight.grad for weight in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_served_is_the_live_teachers_own_distribution(world):
    folder, blocks = world
    teacher, batch = CachedTeacher(blocks, ALL, TOKENIZER), batch_of([33, 6])
    sparse = teacher.sparse_logits(batch)
    at = 0
    for row in Rows(rows_of([33, 6])):  # written out: one row without padding, logits at t - 1 say token t
        with torch.no_grad():
            said = load_model(folder)(input_ids=torch.tensor([row.input_ids.tolist()])).logits[0].log_softmax(-1)
        for start, end in zip(row.starts, row.ends, strict=True):
            for t in range(start, end):
                torch.testing.assert_close(sparse.logprobs[at], said[t - 1, sparse.ids[at]], rtol=1e-3, atol=1e-5)
                at += 1
    assert at == len(sparse) and len(teacher) == 12


def test_a_row_that_is_not_stored_is_refused_by_number(world):
    teacher = CachedTeacher(world[1], ALL, TOKENIZER)
    with pytest.raises(SettingsError, match="12 rows are stored and row 11 is not in it"):
        teacher.sparse_logits(batch_of([6, 11]))
    batch = batch_of([6])
    with pytest.raises(SettingsError, match="text generated during training"):
        teacher.sparse_logits(batch | {"rows": torch.tensor([-1])})


def test_other_tokens_and_other_scored_positions_are_refused_by_name(world):
    teacher, batch = CachedTeacher(world[1], ALL, TOKENIZER), batch_of([6])
    ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
    ids[0, 0] += 1
    with pytest.raises(SettingsError, match="row 6 was stored with other tokens"):
        teacher.sparse_logits(batch | {"input_ids": ids})
    labels[0, (labels[0] >= 0).nonzero()[0]] = -100
    with pytest.raises(SettingsError, match="row 6 was stored with other scored positions"):
        teacher.sparse_logits(batch | {"labels": labels})


def test_another_student_is_refused_by_its_tokenizer_or_its_template(world):
    other = byte_tokenizer()
    other.add_tokens(["<|extra|>"])
    with pytest.raises(SettingsError, match=r"is of another (vocabulary|tokenizer)"):
        CachedTeacher(world[1], ALL, other)
    with pytest.raises(SettingsError, match="is of another chat template"):
        CachedTeacher(world[1], ALL, byte_tokenizer("{{ '<bos>' }}" + CHAT_TEMPLATE))


def test_another_tokenizer_of_the_same_size_is_refused(world, copied):
    with pytest.raises(SettingsError, match=r"another tokenizer: 123, not"):
        CachedTeacher([copied(tokenizer="123")], ALL, TOKENIZER)


def test_another_teacher_is_refused(world, tmp_path):
    other = save_tiny(tmp_path / "other", seed=2)
    with pytest.raises(SettingsError, match="is of another teacher"):
        CachedTeacher(world[1], ALL, TOKENIZER, teacher=other)
    copy = save_tiny(tmp_path / "copy", seed=1)
    assert len(CachedTeacher(world[1], ALL, TOKENIZER, teacher=copy)) == 12, "the folder's name is no identity"


@pytest.mark.parametrize("signal", [Signal(kind="top_k", top_k=8), Signal(kind="sampled")], ids=lambda s: s.kind)
def test_another_signal_is_refused_and_another_tail_is_not(world, signal):
    with pytest.raises(SettingsError, match="is of another signal"):
        CachedTeacher(world[1], signal, TOKENIZER)
    assert CachedTeacher(world[1], replace(ALL, tail="zero"), TOKENIZER).signal.tail == "zero"


@pytest.mark.parametrize("name", ["teacher", "tokenizer", "chat_template", "precision", "max_length"])
def test_caches_that_differ_are_not_read_together(world, copied, name):
    with pytest.raises(SettingsError, match=f"cannot be read together: {name} is .* and 'x'"):
        CachedTeacher([world[1][1], copied(**{name: "x"})], ALL, TOKENIZER)


def test_a_row_in_two_caches_is_refused(world, copied):
    with pytest.raises(SettingsError, match="row 30 is twice"):
        CachedTeacher([world[1][0], copied()], ALL, TOKENIZER)


def test_an_unfinished_cache_is_refused(world, copied):
    folder = copied()
    (folder / "meta.json").unlink()
    with pytest.raises(SettingsError, match="not complete"):
        CachedTeacher([folder], ALL, TOKENIZER)


def test_a_cache_never_serves_less_than_was_asked_for(world):
    teacher = CachedTeacher(world[1], ALL, TOKENIZER)
    with pytest.raises(SettingsError, match=r"teacher='CachedTeacher' .*in memory"):
        objective_for(TrainingPhase(divergence="features"), teacher, len(TOKENIZER), student=tiny_llama())
    with pytest.raises(SettingsError, match="this trains on student text"):
        student = TrainingPhase(sequences="student", student_share=0.5, divergence="forward_kl")
        objective_for(student, teacher, len(TOKENIZER))
    zero = CachedTeacher(world[1], replace(ALL, tail="zero"), TOKENIZER)
    with pytest.raises(SettingsError, match="not with reverse_kl"):
        objective_for(TrainingPhase(divergence="reverse_kl"), zero, len(TOKENIZER))
