"""Texts: whose words a training step is made of, decided where the rows of an optimizer step are collected.

`Given` trains the rows as they are. `StudentText` lets the student answer their prompts, on one seeded
coin per optimizer step. A kind of text is one class with `rows`; the trainer pads and counts what comes
back alike for all of them. Every turn of a row is a prompt with gold history, one turn per visit, drawn by
the visit's seed.

    texts = texts_for(stage, model, tokenizer, teacher, seed=0, max_new_tokens=64)
    step = texts.rows(0, groups)         # groups: micro-batches of (position in the visiting order, row)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness.generate import generate
from harness.recipe import TrainStage
from harness.sequences import Row, answered, draw_seed, prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.signals import TeacherSignal

Visit = tuple[int, Row]
"""A position in the visiting order, which seeds the visit's draws, and the row visited there."""


@dataclass(frozen=True)
class StepText:
    """The rows of one optimizer step, in micro-batches, and what it took to write them."""

    groups: list[list[Row]]
    origin: str = "given"
    """`given`, `student`, `replay` or `interleaved`; written to the log."""
    student_read: int = 0
    """Tokens the student read or wrote while generating."""
    generated: int = 0
    """Of these, tokens it wrote."""
    teacher_read: int = 0
    """Tokens the teacher read or wrote while generating."""


class Texts(Protocol):
    """What the trainer asks of a kind of text."""

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The rows to train at optimizer step `step` (from 0) in place of these visits, grouped alike."""
        ...

    def state(self) -> dict[str, Any]:
        """What must be kept to go on after a stop, as plain JSON types."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...


def texts_for(
    stage: TrainStage,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    teacher: "TeacherSignal | None",
    seed: int,
    max_new_tokens: int,
) -> Texts:
    """The kind of text a training stage asks for."""
    if stage.sequences == "student":
        return StudentText(stage, model, tokenizer, seed, max_new_tokens)
    return Given()


class Given:
    """The rows as they are."""

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The rows of the visits."""
        return StepText([[row for _, row in group] for group in groups])

    def state(self) -> dict[str, Any]:
        """Nothing: rows follow from the step."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class StudentText:
    """With probability `student_share` per step the student's own answers (GKD, arXiv 2306.13649, Algorithm 1)."""

    def __init__(
        self,
        stage: TrainStage,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        seed: int,
        max_new_tokens: int,
    ) -> None:
        self.stage, self.model, self.tokenizer = stage, model, tokenizer
        self.seed, self.max_new_tokens = seed, max_new_tokens

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The student's answers to the visits' prompts, or the rows as they are."""
        if draw_seed(self.seed, "coin", step) >= self.stage.student_share * 2**64:
            return Given().rows(step, groups)
        return self.written(groups)

    def state(self) -> dict[str, Any]:
        """Nothing: every draw follows from the step or the visit."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def written(self, groups: list[list[Visit]]) -> StepText:
        """The student's answers to the visits' prompts."""
        visits = [visit for group in groups for visit in group]
        seeds = [draw_seed(self.seed, "student text", position) for position, _ in visits]
        prompts = [prompt_of(row, seed) for (_, row), seed in zip(visits, seeds, strict=True)]
        answers = generate(
            self.model, self.tokenizer, prompts, self.max_new_tokens, self.stage.sampling_temperature, seeds
        )
        generated = sum(map(len, answers))
        texts = iter(answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
        return StepText(
            [[next(texts) for _ in group] for group in groups],
            origin="student",
            student_read=generated + sum(map(len, prompts)),
            generated=generated,
        )
