"""Three defects of TRL 1.16's GKDTrainer that would confound a comparison with fine-tuning, shown on its own class.

A. The temperature reaches the sampling and not the loss. B. On student text the loss is divided by the data
set's tokens and not by those in the loss, so the length of the reference answers scales the learning rate.
C. Of a conversation only the last assistant turn is trained. Each test shows the defect, then that this
trainer does not have it. A test that fails on its first half says that TRL was mended.
"""

import os
import random

import pytest
import torch
from datasets import Dataset

from harness.config.budget import Budget
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.chat import render
from harness.data.sequences import IGNORED, Row, collate, visits
from harness.teachers.signals import LiveTeacher
from harness.training.trainer import TrainingData, TrainingSettings, fit
from tests.doubles import byte_tokenizer, tiny_llama

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
gkd = pytest.importorskip("trl.experimental.gkd")

TOKENIZER = byte_tokenizer()
PROMPTS = ["ab", "cde", "fg", "hij"]


def conversations(answer_tokens=3):
    return [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "x" * (answer_tokens - 1)}]}
        for p in PROMPTS
    ]  # an answer's end of turn is its last token


def theirs(tmp_path, rows, lmbda=0.0, temperature=0.9, new=12):
    arguments = gkd.GKDConfig(
        output_dir=str(tmp_path),
        lmbda=lmbda,
        beta=0.0,
        temperature=temperature,
        max_new_tokens=new,
        per_device_train_batch_size=len(PROMPTS),
        max_length=64,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
    )
    return gkd.GKDTrainer(
        model=tiny_llama(),
        teacher_model=tiny_llama(seed=1),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )


def ours(tmp_path, answer_tokens=3, new=12, **stage):
    columns = {"input_ids": [], "starts": [], "ends": []}
    for row in conversations(answer_tokens):
        rendered = render(TOKENIZER, row["messages"], 64)
        for name in columns:
            columns[name].append(list(getattr(rendered, name)))
    return fit(
        tiny_llama(),
        TOKENIZER,
        TrainingData(Dataset.from_dict(columns), visits(len(PROMPTS), 1, len(PROMPTS), seed=0)),
        TrainingSettings(
            Budget(batch_size=len(PROMPTS)),
            TrainingPhase(divergence="forward_kl", **stage),
            Machine(device="cpu"),
            seed=0,
            max_new_tokens=new,
        ),
        out=tmp_path,
        teacher=LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER),
    )


def test_a_the_temperature_changes_our_loss_and_not_that_of_gkdtrainer(tmp_path):
    losses = []
    for temperature in (0.9, 3.0):
        trainer = theirs(tmp_path, conversations(), temperature=temperature)
        (batch,) = trainer.get_train_dataloader()
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == losses[1] > 0
    mild, strong = (ours(tmp_path, divergence_temperature=t).first_loss / t**2 for t in (0.9, 3.0))
    assert mild > 2 * strong > 0


def on_policy_loss_of_gkdtrainer(tmp_path, answer_tokens):
    """The loss TRL trains on, and the same sum over the tokens that are in it."""
    trainer = theirs(tmp_path, conversations(answer_tokens), lmbda=1.0)
    loader = iter(trainer.get_train_dataloader())
    (batch,), items = trainer.get_batch_samples(loader, 1, torch.device("cpu"))
    random.seed(0), torch.manual_seed(0)
    trainer.create_optimizer()
    loss = trainer.training_step(trainer.model, batch, items).item()  # swaps the text in `batch` for the student's
    with torch.no_grad():
        right = trainer.compute_loss(trainer.model, batch).item()  # without a given count it divides by the tokens
    return loss, right, int(items), int((batch["labels"][:, 1:] != IGNORED).sum())


def test_b_the_length_of_reference_answers_scales_gkdtrainers_loss_on_student_text_and_not_ours(tmp_path):
    for answer_tokens in (3, 6):
        loss, right, items, written = on_policy_loss_of_gkdtrainer(tmp_path, answer_tokens)
        assert items == 4 * answer_tokens and written >= 2 * items
        assert loss == pytest.approx(right * written / items, rel=1e-4)
    short, long = (ours(tmp_path, n, sequences="student", student_share=1.0) for n in (3, 6))
    assert short.trained_tokens == short.generated_tokens > 2 * 4 * 3
    assert short.first_loss == long.first_loss and short.trained_tokens == long.trained_tokens


def test_c_every_assistant_turn_is_trained_and_by_gkdtrainer_the_last_alone(tmp_path):
    turns = zip(["user", "assistant"] * 2, ["a", "one", "b", "two"], strict=True)
    talk = [{"role": role, "content": text} for role, text in turns]
    trainer = theirs(tmp_path, [{"messages": talk}] * 4)
    labels = trainer.data_collator([{"messages": talk}])["labels"][0]
    assert TOKENIZER.decode(labels[labels != IGNORED]) == "two<|end|>"
    rendered = render(TOKENIZER, talk, 64)
    row = Row(torch.tensor(rendered.input_ids).numpy(), rendered.starts, rendered.ends)
    labels = collate([row], pad_id=0)["labels"][0]
    assert TOKENIZER.decode(labels[labels != IGNORED]) == "one<|end|>two<|end|>"
