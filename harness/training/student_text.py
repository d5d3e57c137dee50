"""Texts: whose words a training step is made of, decided where the rows of an optimizer step are collected.

`Given` trains the rows as they are. `StudentText` lets the student answer their prompts, on one seeded
coin per optimizer step; `AdaptiveText` does so as validation asks for it; `InterleavedText` lets student and
teacher write together. A kind of text is one class with `rows`; the trainer pads and counts what comes
back alike for all of them. Every turn of a row is a prompt with gold history, one turn per visit, drawn by
the visit's seed.

    texts = texts_for(phase, model, tokenizer, teacher, seed=0, max_new_tokens=64)
    step = texts.rows(0, groups)         # groups: micro-batches of (position in the visiting order, row)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.data.sequences import Row, answered, draw_seed, prompt_of
from harness.models.generate import generate
from harness.models.speculative import interleave
from harness.runtime.processes import process_count, process_rank
from harness.teachers.signals import LiveTeacher
from harness.training.distillm import (
    AdaptiveShare,
    ReplayBuffer,
    check_every,
    found_by_first,
    of_all_processes,
    own_share,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.teachers.signals import TeacherSignal

Visit = tuple[int, Row]
"""A position in the visiting order, which seeds the visit's draws, and the row visited there."""


@dataclass(frozen=True)
class StepText:
    """The rows of one optimizer step, in micro-batches, and what it took to write them."""

    groups: list[list[Row]]
    origin: str = "given"
    """`given`, `student`, `replay` or `interleaved`; written to the log."""
    student_read: int = 0
    """Tokens the student read or wrote without training on them: while writing, and for validation."""
    generated: int = 0
    """Of these, tokens it wrote."""
    teacher_read: int = 0
    """Tokens the teacher read or wrote while the text was made."""
    teacher_seconds: float = 0.0
    """Seconds in the teacher's forward passes for that."""
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """Figures of this step for the log."""


@dataclass(frozen=True)
class Validation:
    """How the student does on held-out gold rows while it is trained."""

    nll: Callable[[], float]
    """Nats per token of the student as it is now, in eval mode."""
    tokens: int
    """Tokens it reads for that."""
    by_all: bool = False
    """Whether all processes have to look at once: the student is in parts."""


class Texts(Protocol):
    """What the trainer asks of a kind of text; one without a state of its own writes `rows` alone."""

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The rows to train at optimizer step `step` (from 0) in place of these visits, grouped alike."""
        ...

    def warnings(self) -> list[str]:
        """What a reader of the numbers should know once training is over."""
        return []

    def state(self) -> dict[str, Any]:
        """What later steps depend on beside step, visits and models, as plain JSON types."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        assert not state, f"{type(self).__name__} keeps no state"


def texts_for(
    phase: TrainingPhase,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    teacher: "TeacherSignal | None",
    seed: int,
    max_new_tokens: int,
    steps: int = 0,
    validation: Validation | None = None,
) -> Texts:
    """The kind of text a training phase asks for.

    `steps` (of the whole phase) and `validation` are read where the student share is adaptive. Raises
    SettingsError where that has no validation rows, or interleaved text no teacher that is a model in memory.
    """
    if phase.sequences == "interleaved":
        return InterleavedText(phase, model, _live(teacher), tokenizer, seed, max_new_tokens)
    if phase.sequences != "student":
        return Given()
    if not phase.adaptive:
        return StudentText(phase, model, tokenizer, seed, max_new_tokens)
    if validation is None:
        raise refuse(
            "method",
            "distillm",
            "its student share follows the validation loss, and this cell has no validation rows",
            "take a larger data_frac, or method=on_policy",
        )
    return AdaptiveText(phase, model, tokenizer, seed, max_new_tokens, steps, validation)


class Given(Texts):
    """The rows as they are."""

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The rows of the visits."""
        return StepText([[row for _, row in group] for group in groups])


class StudentText(Texts):
    """With probability `student_share` per step the student's own answers (GKD, arXiv 2306.13649, Algorithm 1)."""

    def __init__(
        self,
        phase: TrainingPhase,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        seed: int,
        max_new_tokens: int,
    ) -> None:
        assert max_new_tokens > 0, "student text needs room for at least one token"
        self.phase, self.model, self.tokenizer = phase, model, tokenizer
        self.seed, self.max_new_tokens = seed, max_new_tokens

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The student's answers to the visits' prompts, or the rows as they are."""
        if draw_seed(self.seed, "coin", step) >= self.phase.student_share * 2**64:
            return Given().rows(step, groups)
        return self.written(groups)

    def written(self, groups: list[list[Visit]]) -> StepText:
        """The student's answers to the visits' prompts."""
        prompts, seeds = _asked(groups, self.seed)
        phase = self.phase
        answers = generate(
            self.model,
            self.tokenizer,
            prompts,
            self.max_new_tokens,
            phase.sampling_temperature,
            seeds,
            top_p=phase.sampling_top_p,
        )
        generated = sum(map(len, answers))
        return StepText(
            _grouped(groups, map(answered, prompts, answers)),
            origin="student",
            student_read=generated + sum(map(len, prompts)),
            generated=generated,
        )


class AdaptiveText(StudentText):
    """The student's answers, new or replayed, in a share that grows with the validation loss (DistiLLM)."""

    def __init__(
        self,
        phase: TrainingPhase,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        seed: int,
        max_new_tokens: int,
        steps: int,
        validation: Validation,
    ) -> None:
        super().__init__(phase, model, tokenizer, seed, max_new_tokens)
        assert steps > 0
        self.steps, self.validation = steps, validation
        self.share, self.buffer = AdaptiveShare(phase.student_share), ReplayBuffer(phase.replay_rows)

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """New answers, stored answers, or the rows as they are; the validation loss is looked at before that."""
        read, seen = 0, {}
        if step % check_every(self.steps) == 0:
            nll = found_by_first(self.validation.nll, self.validation.by_all)
            self.share.observe(nll)
            read, seen = self.validation.tokens if process_rank() == 0 else 0, {"validation_nll": nll}
        uniform = draw_seed(self.seed, "coin", step) / 2**64
        origin = self.share.decide(uniform, step / self.steps, self.buffer.full)
        if origin == "student":
            text = self.written(groups)
            self.buffer.add(of_all_processes(text.groups))
        elif origin == "replay":
            count = process_count() * sum(map(len, groups))
            stored = own_share(self.buffer.draw(count, draw_seed(self.seed, "replay", step)), groups)
            text = StepText(_grouped(groups, stored), origin="replay")
        else:
            text = Given().rows(step, groups)
        diagnostics = {"phi": self.share.value, **seen}
        return replace(text, student_read=text.student_read + read, diagnostics=diagnostics)

    def warnings(self) -> list[str]:
        """Whether the share ever left 0."""
        if self.share.value:
            return []
        return [
            "never activated: the validation loss never rose far enough, so the student share stayed 0 and "
            f"this was {self.phase.divergence} on the data's own answers"
        ]

    def state(self) -> dict[str, Any]:
        """The share, its reference and the stored rows."""
        return {"phi": self.share.value, "reference": self.share.reference, "stored": self.buffer.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.share.value, self.share.reference = state["phi"], state["reference"]
        self.buffer.restore(state["stored"])


class InterleavedText(Texts):
    """Answers that student and teacher write together, at every step (speculative KD, arXiv 2410.11325)."""

    def __init__(
        self,
        phase: TrainingPhase,
        model: "PreTrainedModel",
        teacher: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        seed: int,
        max_new_tokens: int,
    ) -> None:
        assert max_new_tokens > 0, "interleaved text needs room for at least one token"
        self.phase, self.model, self.teacher, self.tokenizer = phase, model, teacher, tokenizer
        self.seed, self.max_new_tokens = seed, max_new_tokens

    def rows(self, step: int, groups: list[list[Visit]]) -> StepText:
        """The answers to the visits' prompts; `accepted` in the log is the share of tokens that are the student's."""
        prompts, seeds = _asked(groups, self.seed)
        text = interleave(self.model, self.teacher, self.tokenizer, prompts, self.max_new_tokens, self.phase, seeds)
        kept, read = sum(map(len, text.answers)), text.proposed + sum(map(len, prompts))
        return StepText(
            _grouped(groups, map(answered, prompts, text.answers)),
            origin="interleaved",
            student_read=read,
            generated=text.proposed,
            teacher_read=read,  # it judges every proposal
            teacher_seconds=text.teacher_seconds,
            diagnostics={"accepted": 1 - text.replaced / max(kept, 1)},
        )


def _asked(groups: list[list[Visit]], seed: int) -> tuple[list[list[int]], list[int]]:
    """The visits' prompts and the seeds of what is written to them."""
    visits = [visit for group in groups for visit in group]
    seeds = [draw_seed(seed, "student text", position) for position, _ in visits]
    return [prompt_of(row, own) for (_, row), own in zip(visits, seeds, strict=True)], seeds


def _grouped(groups: list[list[Visit]], rows: Iterable[Row]) -> list[list[Row]]:
    """One row for each visit, in order, in the visits' groups."""
    left = iter(rows)
    return [[next(left) for _ in group] for group in groups]


def _live(teacher: "TeacherSignal | None") -> "PreTrainedModel":
    if teacher is None:
        raise ValueError("interleaved text needs a teacher and got none")
    if not isinstance(teacher, LiveTeacher):
        raise refuse(
            "teacher",
            type(teacher).__name__,
            "interleaved text (method=skd) needs a teacher that is a model in memory, to accept or replace tokens",
            "give a model folder, or choose a method on fixed text, e.g. method=logit_kd",
        )
    return teacher.model  # type: ignore[return-value]
