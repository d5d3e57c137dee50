"""The arms of `against_trl.py`: our fit, and TRL's trainers as their users call them, each from messages on."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl_work import Work

from harness.config.budget import Budget
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.chat import render_many
from harness.teachers.signals import LiveTeacher
from harness.training.trainer import TrainingData, TrainingSettings, fit

SAMPLING_TEMPERATURE = 1e-3
LEARNING_RATE, WEIGHT_DECAY, BETA2, CLIP = 1e-3, 0.01, 0.98, 1.0
GOLD = {"sft": "cross_entropy", "forward_kl": "forward_kl", "jsd": "jsd"}


@dataclass
class Run:
    """What an arm did."""

    at: list[float]
    """Seconds at which steps ended, on one clock."""
    first_loss: float
    """Of the first step, nats per scored token."""
    scored: int
    """Tokens the loss was summed over, all steps together."""


def ours(work: Work, task: str) -> Run:
    if task == "on_policy":
        stage = TrainingPhase(
            sequences="student",
            student_share=1.0,
            divergence="reverse_kl",
            sampling_temperature=SAMPLING_TEMPERATURE,
        )
    else:
        stage = TrainingPhase(divergence=GOLD[task])
    rendered = render_many(work.tokenizer, work.messages, max_length=1024)
    names = ("input_ids", "starts", "ends")
    rows = Dataset.from_dict({name: [getattr(row, name) for row in rendered] for name in names})
    budget = Budget(
        amount=work.steps,
        batch_size=work.batch_size,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.0,
        schedule="constant",
        weight_decay=WEIGHT_DECAY,
        beta2=BETA2,
        max_grad_norm=CLIP,
    )
    report = fit(
        work.student,
        work.tokenizer,
        TrainingData(rows, np.arange(len(rows)).reshape(work.steps, work.batch_size)),
        TrainingSettings(budget, stage, Machine(device="cpu"), seed=0, max_new_tokens=work.max_new_tokens),
        out=Path(work.folder),
        teacher=None if task == "sft" else LiveTeacher(work.teacher, work.tokenizer, work.tokenizer),
    )
    lines = [json.loads(line) for line in (Path(work.folder) / "log.jsonl").read_text().splitlines()]
    return Run([line["seconds"] for line in lines], report.first_loss, report.trained_tokens)


def sft_trainer(work: Work, task: str) -> Run:
    arguments = SFTConfig(**_shared(work), assistant_only_loss=True)
    rows = Dataset.from_dict({"messages": work.messages})
    return _watched(SFTTrainer(work.student, arguments, train_dataset=rows, processing_class=work.tokenizer))


def gkd_trainer(work: Work, task: str) -> Run:
    arguments = GKDConfig(
        **_shared(work),
        lmbda=1.0 if task == "on_policy" else 0.0,
        beta={"forward_kl": 0.0, "jsd": 0.5, "on_policy": 1.0}[task],
        temperature=SAMPLING_TEMPERATURE,
        max_new_tokens=work.max_new_tokens,
    )
    rows = Dataset.from_dict({"messages": work.messages})
    return _watched(GKDTrainer(work.student, work.teacher, arguments, None, rows, processing_class=work.tokenizer))


def distillation_trainer(work: Work, task: str) -> Run:
    arguments = DistillationConfig(
        **_shared(work),
        beta=1.0,
        shuffle_dataset=False,
        max_completion_length=work.max_new_tokens,
        generation_kwargs={"temperature": SAMPLING_TEMPERATURE},  # its own temperature is the divergence's too
    )
    rows = Dataset.from_dict({"prompt": [messages[:-1] for messages in work.messages]})
    trainer = DistillationTrainer(
        work.student, work.teacher, arguments, train_dataset=rows, processing_class=work.tokenizer
    )
    return _watched(trainer)


def _shared(work: Work) -> dict[str, Any]:
    """Arguments that the trainers of TRL have in common: our values, rows in the given order, fp32."""
    return {
        "output_dir": work.folder,
        "max_steps": work.steps,
        "per_device_train_batch_size": work.batch_size,
        "train_sampling_strategy": "sequential",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": WEIGHT_DECAY,
        "adam_beta2": BETA2,
        "max_grad_norm": CLIP,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _watched(trainer: Any) -> Run:
    """Train, noting when each step ended, the first loss per scored token, and how many were scored."""
    watch = _Watch()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    losses: list[float] = []
    scored = 0
    step = trainer.training_step

    def noted(model: Any, inputs: dict[str, Any], items: Any = None) -> torch.Tensor:
        nonlocal scored
        loss = step(model, inputs, items)
        if "labels" in inputs:  # GKDTrainer puts the student's text here
            own = int((inputs["labels"][:, 1:] != -100).sum())
            divided_by = int(items)
        else:
            own = divided_by = int(trainer._buffered_inputs[0]["completion_mask"].sum())
        scored += own
        if not losses:
            losses.append(loss.item() * divided_by / own)
        return loss

    trainer.training_step = noted
    trainer.train()
    return Run(watch.at, losses[0], scored)


class _Watch(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())


ARMS = {
    "ours": ours,
    "sft_trainer": sft_trainer,
    "gkd_trainer": gkd_trainer,
    "distillation_trainer": distillation_trainer,
}
