"""Agreement of student and teacher distributions, as sums over positions.

A divergence (`divergences.py`) is one number that falls; these diagnostics show what it is made of. `teacher_mass`
near 0 on student-generated sequences means that the teacher scores tokens it would never generate; `student_mass`
and `overlap` show whether the student covers the teacher (after verl's on-policy diagnostics). Both distributions
are at temperature 1 whatever the divergence's temperature, so arms can be compared.
"""

import torch

TOP = 20
"""Tokens of each model's top-k; the whole vocabulary where it is smaller."""


@torch.no_grad()
def agreement(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over N positions, from logits (N, V): divide by N for means.

    `teacher_entropy`, `student_entropy` in nats; `teacher_mass`, the teacher's probability of the student's
    top-k; `student_mass`, the student's of the teacher's; `overlap`, the share of the teacher's top-k
    that is in the student's; `argmax_agreement`, 1 where both have the same most probable token.
    """
    student, teacher = (torch.log_softmax(logits.float(), dim=-1) for logits in (student_logits, teacher_logits))
    top = min(TOP, student.shape[-1])
    student_top, teacher_top = student.topk(top).indices, teacher.topk(top).indices  # (N, top), (N, top)
    shared = (teacher_top[:, :, None] == student_top[:, None, :]).any(-1)  # (N, top)
    return {
        "teacher_entropy": _entropy(teacher),
        "student_entropy": _entropy(student),
        "teacher_mass": teacher.gather(-1, student_top).exp().sum(),
        "student_mass": student.gather(-1, teacher_top).exp().sum(),
        "overlap": shared.float().mean(-1).sum(),
        "argmax_agreement": (teacher_top[:, 0] == student_top[:, 0]).float().sum(),
    }


@torch.no_grad()
def end_of_turn_mass(teacher_logits: torch.Tensor, tokens: torch.Tensor, end_of_turn: int) -> dict[str, torch.Tensor]:
    """The teacher's summed probability of the end-of-turn token where a turn ends, and how many turns end.

    `teacher_logits` (N, V), `tokens` (N,). From a teacher that never ends a turn a student learns not to stop
    (ms-swift issue 9526).
    """
    ends = tokens == end_of_turn  # (N,)
    mass = torch.softmax(teacher_logits[ends].float(), dim=-1)[:, end_of_turn].sum()
    return {"teacher_end_mass": mass, "ends": ends.sum()}


def _entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """Summed entropy of N distributions (N, V), in nats."""
    # a finite floor: a token of probability 0 adds 0 x lowest = 0, where 0 x -inf would be NaN
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum()
