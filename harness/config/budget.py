"""Budget: how much training every arm of a grid gets, the same for all of them.

budget = Budget(kind="steps", amount=300)
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.config.checks import check_at_least, check_choice, check_positive, is_number, refuse

BUDGET_KINDS = ("epochs", "steps", "trained_tokens", "flops")
WHOLE = ("steps", "trained_tokens")
"""Kinds whose amount is a count."""
EPOCHS_OF = ("cell", "phase")
ADDED = {"min_steps": None, "epochs_of": "cell"}
"""Fields that a budget got later, with the defaults at which they are no part of an identity."""
PLANNED = ("least_steps_per_phase",)
"""Fields that only the check of a plan reads; never identity."""


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
    min_steps: int | None = None
    """At least this many optimizer steps in the whole budget of every cell, so that small fractions are trained long
    enough for a schedule to mean something; null: no floor. Not for `flops`, whose equal cost a floor would undo."""
    epochs_of: str = "cell"
    """Under `epochs`, whose rows an epoch counts in a phase that trains on synthetic rows: `cell`, the cell's human
    rows (the phases share one budget), or `phase`, its own rows (synthetic and human phases each get `amount` epochs
    of the rows they train on, `min_steps` each, and a method's shares divide each of the two parts)."""
    least_steps_per_phase: int | None = None
    """A plan with a training phase of fewer optimizer steps is refused; null: fewer than 50 are warned of. Never
    identity."""

    def __post_init__(self) -> None:
        check_choice("budget.kind", self.kind, BUDGET_KINDS)
        check_choice("budget.schedule", self.schedule, ("cosine", "linear", "constant"))
        check_choice("budget.precision", self.precision, ("fp32", "bf16"))
        for name in ("amount", "batch_size", "learning_rate", "max_grad_norm"):
            check_positive(f"budget.{name}", getattr(self, name))
        if self.kind in WHOLE and self.amount % 1:
            way_out = f"try budget.amount={max(1, round(self.amount))}"
            raise refuse("budget.amount", self.amount, f"{self.kind} are counted in whole numbers", way_out)
        check_at_least("budget.weight_decay", self.weight_decay, 0)
        check_choice("budget.epochs_of", self.epochs_of, EPOCHS_OF)
        check_at_least("budget.min_steps", self.min_steps, 1)
        check_at_least("budget.least_steps_per_phase", self.least_steps_per_phase, 1)
        if self.kind == "flops" and self.min_steps is not None:
            way_out = "set budget.min_steps=null, or budget.kind=epochs or steps"
            raise refuse("budget.min_steps", self.min_steps, "a floor would undo the equal FLOPs of the arms", way_out)
        for name in ("warmup_ratio", "beta2"):
            if not (is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1):
                raise refuse(f"budget.{name}", getattr(self, name), "it must be at least 0 and below 1")

    @property
    def label(self) -> str:
        """How a figure names this budget, e.g. `300 steps x 32 rows` or `2 epochs x 128 rows, at least 200 steps`."""
        amount = f"{self.amount:g} {self.kind.replace('_', ' ')}"
        if self.counts_own_rows:
            amount += " of each phase's rows"
        floor = "" if self.min_steps is None else f", at least {self.min_steps} steps"
        return f"{amount} x {self.batch_size} rows{floor}"

    @property
    def counts_own_rows(self) -> bool:
        """Whether a phase on other rows than the cell's gets epochs of these rows."""
        return self.kind == "epochs" and self.epochs_of == "phase"

    def identity(self) -> dict[str, Any]:
        """All that can change a number, as plain JSON; a field that was added later only where it is not at its
        default, so that earlier addresses stay."""
        values = {name: value for name, value in asdict(self).items() if name not in PLANNED}
        return {name: value for name, value in values.items() if name not in ADDED or value != ADDED[name]}

    def on(self, other_rows: bool) -> "Budget":
        """This budget as a phase reads it: `epochs_of` is read on other rows than the cell's alone."""
        return self if other_rows and self.counts_own_rows else replace(self, epochs_of="cell")
