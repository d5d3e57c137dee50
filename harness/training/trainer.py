"""The trainer: one thin subclass of TRL's SFTTrainer under every method, and `fit`, which runs it.

TRL and Transformers bring the loop, optimizer, clipping, accumulation, mixed precision and distribution.
Ours are the batches (rows and order are given, `data/sequences.py`), the loss (`losses/objectives.py`) and the
sequences generated while training (`student_text.py`), which are made where an optimizer step's batches are
collected: all arms share padding, data path and denominator. The loss of a step is the sum over its scored tokens
on every process and micro-batch divided by one count of exactly those tokens, so splitting a batch cannot move a
number. (TRL 1.16's GKDTrainer keeps the dataset's count when it trains on generated text; that is not inherited.)

    data = TrainingData(dataset, visits(len(dataset), 300, 32, seed=0))
    settings = TrainingSettings(Budget(), TrainingPhase(), Machine(), seed=0)
    report = fit(model, tokenizer, data, settings, out=folder)
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig

from harness.config.budget import Budget
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.chat import end_of_turn_id
from harness.data.sequences import IGNORED, Row, Rows, collate, sorted_by_length
from harness.models.diverged import DivergedError
from harness.models.flops import forward_flops, train_flops
from harness.models.fsdp import shard_with_fsdp, uses_fsdp
from harness.models.loading import count_frozen, count_parameters
from harness.runtime import preemption, progress
from harness.store.fingerprint import fingerprint
from harness.teachers.reading import Reading
from harness.teachers.several import SeveralReadings, SeveralTeachers
from harness.training.checkpoints import Checkpoints, Resumable
from harness.training.losses.controls import unigram_logprobs
from harness.training.losses.objectives import Objective, TeacherSignal, objective_for, trained_together
from harness.training.nll import mean_nll
from harness.training.student_text import Sequences, StepRows, Validation, sequences_for
from harness.training.trainer_arguments import learning_rate_share, trainer_arguments
from harness.training.training_report import TrainingReport, find_warnings, outside_warnings


@dataclass(frozen=True)
class TrainingData:
    """The rows of a fit and the order in which they are visited."""

    dataset: Dataset
    """Columns `input_ids`, `starts`, `ends` (spans of assistant turns), and `row` where a cache finds rows by it."""
    batches: np.ndarray
    """Places of rows in the data set, int (steps, batch_size); as many optimizer steps are made."""
    loss_on: str = "assistant"
    """Which turns are scored; see `Rows`."""
    validation: Rows | None = None
    """Gold rows for an adaptive student share; only read there."""


@dataclass(frozen=True)
class TrainingSettings:
    """What is minimised, how, and where."""

    budget: Budget
    """Learning rate, schedule, optimizer and precision. The number of steps comes from the batches."""
    phase: TrainingPhase
    """Sequences and divergence."""
    machine: Machine
    """Device and micro-batch size, which move no number."""
    seed: int
    """Of everything that is drawn while training."""
    max_new_tokens: int = 0
    """Most tokens of an answer that is generated while training."""


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    settings: TrainingSettings,
    *,
    out: Path,
    teacher: TeacherSignal | None = None,
) -> TrainingReport:
    """Train `model` in place, step by step, and report; where `uses_fsdp(settings.machine)` it is left FSDP-sharded.

    Writes `out/log.jsonl`, a line a step. Inside an attempt, continues from its newest checkpoint. Raises
    DivergedError at the first loss that is not a number, ValueError where the objective needs a teacher and none was
    given, SettingsError where it needs validation rows, Preempted where the process has to stop and a checkpoint is
    written.
    """
    started = time.perf_counter()
    phase, seed, machine = settings.phase.normal(), settings.seed, settings.machine
    assert getattr(teacher, "model", None) is not model, "a frozen teacher cannot be the student itself"
    rows = Rows(data.dataset, data.loss_on)
    objective = objective_for(
        phase,
        teacher,
        len(tokenizer),
        student=model,
        seed=seed,
        unigram=unigram_logprobs(rows, len(tokenizer)) if phase.control == "unigram" else None,
        end_of_turn=end_of_turn_id(tokenizer) if tokenizer.chat_template else tokenizer.eos_token_id,
    )
    steps, batch_size = data.batches.shape
    if steps == 0:
        return TrainingReport(warnings=["the phase's share of the budget rounds to 0 steps: nothing was trained"])
    held = data.validation
    validation = _validation(model, held, uses_fsdp(machine)) if held is not None and len(held) else None
    reading: Reading | SeveralReadings | None = getattr(teacher, "reading", None)
    sequences = sequences_for(phase, model, tokenizer, teacher, seed, settings.max_new_tokens, steps, validation)
    arguments = trainer_arguments(settings.budget, phase, machine, batch_size, steps, seed, out)
    checkpoints = Checkpoints(
        preemption.folder(), _identity(data, settings, arguments.world_size), machine.checkpoint_minutes
    )
    log_file = out / "log.jsonl" if arguments.process_index == 0 else Path(os.devnull)
    with preemption.polling(), log_file.open("w", buffering=1) as log:
        visits = _Visits(rows, data.batches)
        with trained_together(model, objective):
            if uses_fsdp(machine):
                shard_with_fsdp(model, arguments.device)
            trainer = Trainer(
                model,
                arguments,
                tokenizer,
                data.dataset,
                visits,
                settings.budget,
                sequences,
                objective,
                log,
                checkpoints,
                reading,
                teacher if isinstance(teacher, SeveralTeachers) else None,
            )
            trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    for module in model.modules():  # the forward that TRL and Accelerate put on instances would outlive the fit
        module.__dict__.pop("forward", None)
    model.zero_grad(set_to_none=True)
    report = trainer.report
    _add_costs(report, trainer, model, objective, teacher)
    report.warnings += find_warnings(trainer.gold_nll, steps, report.gold_end_mass, phase.needs_warmup)
    report.warnings += sequences.warnings() + objective.warnings + outside_warnings(report.diagnostics)
    report.seconds = time.perf_counter() - started + report.earlier_seconds
    return report


def _identity(data: TrainingData, settings: TrainingSettings, processes: int) -> str:
    """A fingerprint of all that the numbers of a fit follow from, by which it knows its own checkpoints."""
    stage = settings.phase.normal().identity()
    visited = hashlib.sha256(np.ascontiguousarray(data.batches, np.int64).tobytes()).hexdigest()
    given = [stage, settings.budget.identity(), settings.seed, settings.max_new_tokens, data.loss_on]
    return fingerprint([*given, visited, len(data.batches), processes])


def _add_costs(
    report: TrainingReport,
    trainer: "Trainer",
    model: PreTrainedModel,
    objective: Objective,
    teacher: TeacherSignal | None,
) -> None:
    """Complete the report's tokens, seconds and FLOPs of student and teacher."""
    parameters = count_parameters(model)
    report.flops = train_flops(parameters, report.read_tokens, count_frozen(model))
    report.flops += forward_flops(parameters, trainer.untrained_tokens)
    report.teacher_seconds += objective.teacher_seconds
    report.teacher_tokens += trainer.over_processes(objective.teacher_tokens)
    if isinstance(teacher, SeveralTeachers):
        report.flops += report.teacher_flops  # counted step by step, since members differ in size
    elif teacher is not None:
        report.teacher_flops = forward_flops(teacher.parameters, report.teacher_tokens)
        report.flops += report.teacher_flops


class Trainer(Resumable):
    """SFTTrainer with given batches, our loss, and sequences that may be generated anew at every optimizer step."""

    loss_is_scaled_for_ga = True  # type: ignore[assignment]  # `compute_loss` divides by the count of the whole optimizer step

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: SFTConfig,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        visits: "_Visits",
        budget: Budget,
        sequences: Sequences,
        objective: Objective,
        log: IO[str],
        checkpoints: Checkpoints,
        reading: Reading | SeveralReadings | None = None,
        several: SeveralTeachers | None = None,
    ) -> None:
        self.checkpoints, self.reading, self.several = checkpoints, reading, several
        self.visits, self.budget, self.sequences, self.jsonl = visits, budget, sequences, log
        self.objective: Objective = objective
        self.report = TrainingReport()
        self.gold_nll: list[tuple[int, float]] = []  # (step, nats per token) of steps on given text
        self.untrained_tokens = 0  # processed without training on them: prompts, generated answers, validation rows
        self._losses: list[torch.Tensor] = []
        self._sums: dict[str, torch.Tensor] = {}  # diagnostics of a step, over its positions
        self._items, self._step_rows, self._started = 1, StepRows([]), time.perf_counter()
        super().__init__(
            model=model,
            args=arguments,
            data_collator=list,  # type: ignore[arg-type]  # rows stay rows until `get_batch_samples` has the step's sequences
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        if arguments.use_cpu:  # nothing to free before the one run of a trainer, and it costs half a second
            self.accelerator.free_memory = lambda *_: None
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def get_train_dataloader(self) -> Any:
        """Rows in the given order, a micro-batch at a time."""
        loader = torch.utils.data.DataLoader(
            self.visits, batch_size=self.args.per_device_train_batch_size, shuffle=False, collate_fn=list
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, Any]:
        """All micro-batches of one optimizer step, with the rows to train on, and the number of their scored tokens."""
        step = self.state.global_step + 1
        self.objective.diagnoses = step == 1 or step % 10 == 0
        groups = [group for _, group in zip(range(num_batches), epoch_iterator, strict=False)]
        text = self.sequences.rows(self.state.global_step, groups)
        micro_batches = sorted_by_length(text.groups)
        batches = [collate(group, self.pad_id) for group in micro_batches]  # (B, T) tensors each
        if self.reading is not None:
            for batch, group in zip(batches, micro_batches, strict=True):
                batch.update(self.reading.tensors(group, self.pad_id))
        items = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        read = sum(len(row.input_ids) for group in text.groups for row in group)
        scored = sum(int(batch.get("teacher_attention_mask", batch["attention_mask"]).sum()) for batch in batches)
        work = 0  # of several teachers, parameters times tokens
        if self.several is not None:
            each = [self.several.reading.read_tokens(batch) for batch in batches]
            scored, work = sum(map(sum, each)), sum(map(self.several.flops_factor, each))
        teacher_read = text.teacher_tokens + (scored if self.objective.queries_teacher else 0)
        # one reduction for all counts; every process then divides by the scored tokens of all
        counts = torch.tensor([items, read, text.student_tokens, text.generated, teacher_read, work])
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts.to(device))
        items, read, student_tokens, generated, teacher_tokens, work = counts.tolist()
        self._items, self._step_rows = items, replace(text, groups=[])
        self.report.trained_tokens += items
        self.report.read_tokens += read
        self.report.teacher_tokens += teacher_tokens
        self.report.teacher_flops += forward_flops(1, work)
        self.report.teacher_seconds += text.teacher_seconds
        self.report.generated_tokens += generated
        self.report.student_steps += text.origin != "given"
        self.untrained_tokens += student_tokens
        return batches, self._items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """This micro-batch's share of the step's loss: its sum over the step's count."""
        assert not return_outputs, "logits are made at scored positions only"
        found = self.objective.compare(model, inputs)
        for name, total in found.diagnostics.items():
            self._sums[name] = self._sums.get(name, 0) + total
        # each process divides by the count of all, and gradients are averaged over processes
        return found.sum * (self.accelerator.num_processes / max(self._items, 1))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; after the last of a step, log it, before the optimizer moves."""
        loss = super().training_step(*args, **kwargs)
        self._losses.append(loss)
        if len(self._losses) == self.current_gradient_accumulation_steps:
            self._finish_step()
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, then the budget's decay."""
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer,  # type: ignore[arg-type]
            lambda step: learning_rate_share(self.budget, step, num_training_steps),
        )
        return self.lr_scheduler

    def over_processes(self, count: int) -> int:
        """The sum of what every process counted for itself."""
        if self.accelerator.num_processes == 1:
            return count
        return int(cast(torch.Tensor, self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device))))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: `models/flops.py` has the formula, and counting parameters at each step is slow."""
        return 0

    def _finish_step(self) -> None:
        sums = self._finished_sums()
        self.want_checkpoint(sums.pop("wanted"))
        loss, step = sums.pop("loss"), self.state.global_step + 1
        if not math.isfinite(loss):
            raise DivergedError(f"the loss at step {step} of {self.state.max_steps} is {loss}")
        nll = sums.pop("student_nll") / max(self._items, 1)
        given = self._step_rows.origin == "given"
        if given:
            self.gold_nll.append((step, nll))
        if step == 1:
            self.report.first_loss = loss
        self.report.last_loss, self.report.steps = loss, step
        line = {
            "step": step,
            "loss": loss,
            "nll": nll,
            "sequences": self._step_rows.origin,
            **self._step_rows.diagnostics,
            "learning_rate": cast(LambdaLR, self.lr_scheduler).get_last_lr()[0],
            "tokens": self.report.trained_tokens,
            "seconds": round(time.perf_counter() - self._started, 3),
            **self.report.diagnose(sums, self._items, given=given),
        }
        self.jsonl.write(json.dumps(line) + "\n")
        progress.log(line)
        progress.report(step, self.state.max_steps, loss)

    def _finished_sums(self) -> dict[str, float]:
        """The step's loss and its diagnostics' sums, over all micro-batches and processes.

        All processes get the same numbers, so all of them stop at the same step. Above 0, `wanted` asks for a
        checkpoint.
        """
        processes = self.accelerator.num_processes
        named = {"loss": sum(self._losses) / processes, "wanted": self.checkpoints.wanted(), **self._sums}
        totals = torch.stack([torch.as_tensor(total).float() for total in named.values()])
        if processes > 1:
            totals = cast(torch.Tensor, self.accelerator.reduce(totals, "sum"))
        self._losses, self._sums = [], {}
        return dict(zip(named, totals.tolist(), strict=True))


def _validation(model: PreTrainedModel, rows: Rows, by_all: bool) -> Validation:
    return Validation(lambda: mean_nll(model, rows)[0], sum(len(row.input_ids) for row in rows), by_all)


class _Visits(torch.utils.data.Dataset):
    """(position in the order, row) for every visit; positions seed a visit's draws."""

    def __init__(self, rows: Rows, batches: np.ndarray) -> None:
        self.rows, self.order = rows, batches.ravel()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[int, Row]:
        return position, self.rows[self.order[position]]
