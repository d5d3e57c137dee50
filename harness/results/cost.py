"""Cost: the sum of a cell's stages in tokens, FLOPs and seconds, with the teacher's share apart.

A forward pass is 2 N FLOPs per token and a training step 6 N (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), with N all parameters and tokens those the model reads, not only those that are scored. A frozen
weight under adapters needs no gradient of its own, which spares it 2 of the 6: 4 N + 6 n with n adapter weights.
Attention's quadratic part is left out; it is small at the lengths used here.

    train_flops(parameters=360_000, tokens=1_000_000)  # 2.16e12
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Tokens that a model processed or generated, FLOPs (estimate), wall seconds."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens - other.tokens, self.flops - other.flops, self.seconds - other.seconds)

    def over(self, users: int) -> "Cost":
        """An equal share of it."""
        return Cost(self.tokens / users, self.flops / users, self.seconds / users)


def stage_cost(facts: Mapping[str, Any]) -> Cost:
    """The whole cost of one finished stage, from the facts in its manifest."""
    cost, counts = facts.get("cost", {}), facts.get("counts", {})
    # a base's pre-training reports the tokens it trained on and no other count
    read = counts.get("read_tokens", cost.get("trained_tokens", 0))
    tokens = float(read) + float(cost.get("generated_tokens", 0)) + float(cost.get("teacher_tokens", 0))
    return Cost(tokens, float(cost.get("flops", 0.0)), float(facts.get("seconds", 0.0)))


def live_teacher_cost(facts: Mapping[str, Any]) -> Cost:
    """The part of a train stage's cost that was the live teacher's forward passes."""
    cost = facts.get("cost", {})
    names = ("teacher_tokens", "teacher_flops", "teacher_seconds")
    return Cost(*(float(cost.get(name, 0.0)) for name in names))


def cell_cost(
    train: Iterable[Mapping[str, Any]],
    teaching: Iterable[tuple[Mapping[str, Any], int]],
    teacher_training: Iterable[tuple[Mapping[str, Any], int]],
) -> dict[str, Cost]:
    """Costs of a cell in five figures (facts of its stages go in, by purpose, shared ones with their users).

    train: the cell's own train stages without the live teacher's forward passes. teacher: those, and labels
    and synthetic rows, charged whole to the cell. total: both, the marginal cost. with_teacher_training: the
    total and what it took to make the teacher. amortised: that, with labels, synthetic rows and the making of
    the teacher divided among the cells of the grid that use them.
    """
    train, teaching, teacher_training = list(train), list(teaching), list(teacher_training)
    # a train stage's facts contain its live teacher, whose passes belong to the teacher's share
    live = _sum(live_teacher_cost(facts) for facts in train)
    own = _sum(stage_cost(facts) for facts in train) - live
    teacher = live + _sum(stage_cost(facts) for facts, _ in teaching)
    making = _sum(stage_cost(facts) for facts, _ in teacher_training)
    shared = _sum(stage_cost(facts).over(users) for facts, users in [*teaching, *teacher_training])
    return {
        "train": own,
        "teacher": teacher,
        "total": own + teacher,
        "with_teacher_training": own + teacher + making,
        # the live teacher works for this cell alone, so it is not divided
        "amortised": own + live + shared,
    }


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())
