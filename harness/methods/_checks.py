"""Checks of settings that several methods have, and the warm-up phase that several methods begin with.

No method of its own (the underscore keeps it out of the registry). Methods that need a student that can already answer
begin with cross-entropy, counted in the budget; methods with the same `warmup` share its artifact.

    after_warmup(0.2, divergence="tvd")      # cross-entropy on (0, 0.2), total variation on (0.2, 1)
"""

from typing import Any

from harness.config.checks import check_at_least, check_choice, check_positive, refuse
from harness.config.recipe import TrainingPhase


def check_warmup(warmup: float) -> None:
    """Raise unless a share of the budget is left after the warm-up."""
    if not 0 <= warmup < 1:
        raise refuse("method.warmup", warmup, "it is 0 or more and below 1", "or use method=sft")


def check_mix(cross_entropy_weight: float, divergence_temperature: float) -> None:
    """Raise unless a divergence is left beside the cross-entropy, at a temperature above 0."""
    if not 0 <= cross_entropy_weight < 1:
        raise refuse(
            "method.cross_entropy_weight",
            cross_entropy_weight,
            "it is 0 or more and below 1",
            "cross-entropy alone is method=sft",
        )
    check_positive("method.divergence_temperature", divergence_temperature)


def check_written(teacher_temperature: float, samples_per_prompt: int, rationale: str) -> None:
    """Raise unless a teacher can generate such answers; several greedy answers to one prompt would be equal."""
    if not 0 <= teacher_temperature < float("inf"):
        raise refuse("method.teacher_temperature", teacher_temperature, "it is 0 (greedy) or above")
    if not (isinstance(samples_per_prompt, int) and samples_per_prompt >= 1):
        raise refuse("method.samples_per_prompt", samples_per_prompt, "it is a whole number of at least 1")
    if samples_per_prompt > 1 and teacher_temperature == 0:
        raise refuse(
            "method.samples_per_prompt",
            samples_per_prompt,
            "greedy answers to one prompt are all the same",
            "set method.teacher_temperature above 0, e.g. 0.7",
        )
    check_choice("method.rationale", rationale, ("keep", "strip"))


def check_beside(what: str, hidden_weight: float, forward_kl_weight: float, cross_entropy_weight: float) -> None:
    """Raise unless `what` has a weight and another term trains the output layer."""
    check_positive("method.hidden_weight", hidden_weight)
    check_at_least("method.forward_kl_weight", forward_kl_weight, 0)
    check_at_least("method.cross_entropy_weight", cross_entropy_weight, 0)
    if not forward_kl_weight + cross_entropy_weight:
        raise refuse(
            "method.forward_kl_weight",
            forward_kl_weight,
            f"{what} alone train no output layer",
            "set forward_kl_weight or cross_entropy_weight above 0",
        )


def after_warmup(warmup: float, **values: Any) -> tuple[TrainingPhase, ...]:
    """Cross-entropy for the first `warmup` of the budget, a phase that methods share, then a phase of these values."""
    first = (TrainingPhase(span=(0.0, warmup)),) if warmup else ()
    return (*first, TrainingPhase(span=(warmup, 1.0), **values))
