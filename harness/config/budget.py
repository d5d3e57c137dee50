"""Budget: how much training every arm of a grid gets, the same for all of them.

budget = Budget(kind="steps", amount=300)
"""

from dataclasses import dataclass

from harness.config.checks import check_at_least, check_choice, check_positive, refuse

BUDGET_KINDS = ("epochs", "steps", "trained_tokens", "flops")


@dataclass
class Budget:
    """How much training every arm gets. Named on every figure; part of identity."""

    kind: str = "steps"
    """`epochs` over the cell's rows, optimizer `steps`, `trained_tokens` (response tokens scored), or `flops`: the
    marginal cost, with the teacher's share, so that an arm with a teacher takes fewer steps."""
    amount: float = 300
    """Number of epochs, steps, tokens or FLOPs."""
    batch_size: int = 32
    """Rows per optimizer step over all processes (the effective batch)."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_ratio: float = 0.05
    """Share of a training phase's steps in which the learning rate warms up."""
    schedule: str = "cosine"
    """Decay after warm-up: `cosine` (to 5 % of the peak), `linear` (to 0) or `constant`."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    beta2: float = 0.98
    """AdamW second-moment decay."""
    max_grad_norm: float = 1.0
    """Global gradient clipping norm."""
    precision: str = "fp32"
    """`fp32`, or `bf16` activations by autocast; weights and optimizer stay fp32: pure bf16 loses small updates."""

    def __post_init__(self) -> None:
        check_choice("budget.kind", self.kind, BUDGET_KINDS)
        check_choice("budget.schedule", self.schedule, ("cosine", "linear", "constant"))
        check_choice("budget.precision", self.precision, ("fp32", "bf16"))
        for name in ("amount", "batch_size", "learning_rate", "max_grad_norm"):
            check_positive(f"budget.{name}", getattr(self, name))
        check_at_least("budget.weight_decay", self.weight_decay, 0)
        for name in ("warmup_ratio", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(f"budget.{name}", getattr(self, name), "it must be at least 0 and below 1")

    @property
    def label(self) -> str:
        """How a figure names this budget, e.g. `300 steps x 32 rows`."""
        return f"{self.amount:g} {self.kind.replace('_', ' ')} x {self.batch_size} rows"
