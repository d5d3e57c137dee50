"""A budget and a machine as TRL's arguments, and the learning rate's schedule.

`config/` has the settings; nothing here is a setting of its own. The cosine falls to 5 % of
the peak and not to 0, so a run's last steps still train.
"""

import math
from pathlib import Path

from trl import SFTConfig

from harness.config.budget import Budget
from harness.config.checks import refuse
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.models.fsdp import uses_fsdp
from harness.models.loading import device_of
from harness.runtime.processes import equal_part, process_count


def trainer_arguments(
    budget: Budget,
    objective: TrainingPhase,
    machine: Machine,
    batch_size: int,
    steps: int,
    seed: int,
    out: Path,
) -> SFTConfig:
    """TRL's arguments; `batch_size` rows a step over all processes, in equal micro-batches of at most
    `machine.micro_batch_size` rows. Raises SettingsError where the rows do not divide among the processes."""
    use_cpu = device_of(machine) == "cpu"
    processes = process_count()
    if batch_size % processes:
        reason = f"the rows of a step do not divide among the {processes} processes that train"
        way_out = "start another number of processes: results stay the same"
        raise refuse("budget.batch_size", batch_size, reason, way_out)
    own = batch_size // processes
    micro = equal_part(own, machine.micro_batch_size or own)
    return SFTConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=own // micro,
        learning_rate=budget.learning_rate * objective.learning_rate_scale,
        weight_decay=budget.weight_decay,
        adam_beta1=0.9,
        adam_beta2=budget.beta2,
        max_grad_norm=budget.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=budget.precision == "bf16",  # autocast: weights and optimizer stay fp32
        use_cpu=use_cpu,
        activation_checkpointing=machine.gradient_checkpointing,
        gradient_checkpointing=None,  # type: ignore[arg-type]  # deprecated, and TRL's default is True
        seed=seed % 2**32,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
        # under FSDP each process adds up its own shard of the gradients: every micro-batch's are averaged at once
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if uses_fsdp(machine) else None,
        ddp_find_unused_parameters=False,  # none is unused; the search would miss weights beside the model's forward
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )


def learning_rate_share(budget: Budget, step: int, steps: int) -> float:
    """The share of the peak learning rate at `step` (from 0) of a stage's `steps`."""
    warmup = math.ceil(budget.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if budget.schedule == "cosine":
        return 0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1))) / 2
    return 1.0 if budget.schedule == "constant" else max(0.0, 1 - done)
