"""Machine: where a stage runs and how stages are executed; settings that are never identity.

The settings of a cell are in `cell.py`; a cluster is described in `cluster.py`.

    machine = Machine(device="cuda", micro_batch_size=8)
"""

from dataclasses import dataclass

from harness.config.checks import check_at_least, check_choice


@dataclass
class Machine:
    """Where a stage runs. Never identity: it must not change what a stage means."""

    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    threads: int = 0
    """Torch threads per worker; 0: one for models below 10 million parameters, else a fair share of the cores."""
    micro_batch_size: int | None = None
    """At most this many rows per forward pass and process; null: the process's whole share of the batch."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    shard: bool = False
    """Shard weights, gradients and optimizer over the processes that train a stage (FSDP); no effect on one process."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints of a training run; 0: only when it receives a stop signal."""

    def __post_init__(self) -> None:
        check_choice("machine.device", self.device, ("auto", "cpu", "cuda"))
        for name, least in (("threads", 0), ("micro_batch_size", 1), ("checkpoint_minutes", 0)):
            check_at_least(f"machine.{name}", getattr(self, name), least)


@dataclass
class Launch:
    """How stages are executed. Never identity."""

    kind: str = "local"
    """`local` (a bounded pool of workers) or `inline` (this process, one stage at a time)."""
    workers: int = 0
    """Workers of the local pool; 0: one per GPU, or one per CPU core (at most 4)."""

    def __post_init__(self) -> None:
        check_choice("launch.kind", self.kind, ("local", "inline"))
        check_at_least("launch.workers", self.workers, 0)
