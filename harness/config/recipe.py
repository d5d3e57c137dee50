"""Recipe: the training phases a method is made of, sequences x divergence x share of the budget.

A phase is one value of `TrainingPhase`; `methods/` lists the phases of a method, and each becomes a stage of the plan.
Recipes are put into one normal form, so two methods that train the same way have the same address. A value that a
phase does not read has no part in its identity, so a new kind of divergence, with values of its own, renames nothing.

    TrainingPhase(divergence="jsd", jsd_teacher_weight=0.0).normal().divergence    # "forward_kl"
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from harness.config.checks import check_choice, refuse

SEQUENCES = ("gold", "teacher", "synthetic", "mixed", "student", "interleaved")
TOKEN_DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward_kl", "skew_reverse_kl")
"""Divergences of two next-token distributions over one vocabulary."""
HIDDEN = ("features", "relations")
"""Divergences of hidden states, read inside both models."""
CROSS = ("uld", "spans")
"""Divergences of two models with tokenizers of their own."""
DIVERGENCES = ("cross_entropy", *TOKEN_DIVERGENCES, *HIDDEN, *CROSS)
WRITTEN = ("teacher", "synthetic", "mixed", "student", "interleaved")
CONTROLS = ("none", "shuffled", "unigram")


def _read_by(default: Any, *readers: str) -> Any:
    """A value that only phases with one of these sequences or divergences read."""
    return field(default=default, metadata={"readers": frozenset(readers)})


@dataclass(frozen=True)
class TrainingPhase:
    """One training phase of a recipe; every value it reads can change a number, so it is identity."""

    sequences: str = "gold"
    """Where tokens come from: `gold`, `teacher` (its answers), `synthetic` (its prompts and answers),
    `mixed` (synthetic and gold rows together), `student` (with probability `student_share` per step
    student-generated sequences, on-policy, else gold), `interleaved` (speculative KD: the student drafts tokens, the
    teacher accepts or replaces them)."""
    divergence: str = "cross_entropy"
    """Loss that is minimised at each scored position."""
    span: tuple[float, float] = (0.0, 1.0)
    """The part of the budget this phase trains, e.g. (0.0, 0.2) for a warm-up."""
    learning_rate_scale: float = 1.0
    """Multiplies the budget's learning rate."""
    teacher: str = _read_by("given", *DIVERGENCES[1:], "teacher", "synthetic", "mixed", "interleaved")
    """`given` (the cell's teacher) or `self` (the student that plain fine-tuning makes of the same cell)."""
    control: str = _read_by("none", "teacher", *TOKEN_DIVERGENCES, *CROSS)
    """A control without a teacher's information: `shuffled` (a permuted teacher: its outputs belong to other rows or
    positions) or `unigram` (one distribution everywhere: the counts of the phase's own response tokens)."""

    student_share: float = _read_by(0.0, "student")
    """Probability per optimizer step of training on student-generated sequences (GKD's lambda)."""
    adaptive: bool = _read_by(False, "student")
    """Whether the share grows from 0 when the validation loss rises (DistiLLM), up to `student_share`."""
    replay_rows: int = _read_by(1000, "student")
    """Student-generated rows kept for replay; only read where `adaptive`."""
    sampling_temperature: float = _read_by(1.0, *WRITTEN)
    """Temperature at which text for this phase is generated; 0 is greedy."""
    sampling_top_p: float = _read_by(1.0, "student", "interleaved")
    """Nucleus (top-p) from which text is sampled; 1 is the whole distribution."""
    proposed_tokens: int = _read_by(5, "interleaved")
    """Tokens the student drafts at a time (gamma)."""
    accepted_top_k: int = _read_by(25, "interleaved")
    """A drafted token is accepted if it is among the teacher's k most probable."""
    teacher_temperature: float = _read_by(0.2, "interleaved")
    """Temperature at which the teacher samples the token that replaces a rejected one; 0 is greedy."""
    teacher_top_p: float = _read_by(0.5, "interleaved")
    """Nucleus (top-p) of the teacher from which that token is sampled."""
    samples_per_prompt: int = _read_by(1, "teacher")
    """Teacher's answers per prompt."""
    rationale: str = _read_by("keep", "teacher")
    """`keep` or `strip` the reasoning a teacher generates before its answer."""
    synthetic_rows: int = _read_by(0, "synthetic", "mixed")
    """Synthetic rows the teacher generates."""
    examples_in_context: int = _read_by(0, "synthetic", "mixed")
    """Human rows shown to the teacher for each synthetic one."""
    synthetic_ratio: float = _read_by(0.0, "synthetic", "mixed")
    """Synthetic rows per human training row, instead of `synthetic_rows`; 0: `synthetic_rows` is used."""
    least_prompt_tokens: int = _read_by(1, "synthetic", "mixed")
    """Fewest prompt tokens of a synthetic row; rows with a shorter prompt are dropped."""
    least_answer_tokens: int = _read_by(1, "synthetic", "mixed")
    """Fewest answer tokens of a synthetic row, the end-of-turn token counted; shorter ones are dropped."""
    near_duplicate: float = _read_by(0.0, "synthetic", "mixed")
    """ROUGE-L F1 from which a synthetic prompt is dropped as a near duplicate of a kept, human, validation or held-out
    one; 0: only exact duplicates are dropped."""
    verified: bool = _read_by(False, "synthetic", "mixed")
    """Whether only synthetic answers that the corpus knows to be right are kept."""
    self_consistency: float = _read_by(0.0, "synthetic", "mixed")
    """Share of `consistency_samples` more answers that have to agree with a synthetic answer; 0: no check."""
    consistency_samples: int = _read_by(5, "synthetic", "mixed")
    """More answers sampled per synthetic prompt; only read where `self_consistency` is above 0."""
    human_share: float = _read_by(0.0, "mixed")
    """Share of visits that are human rows; 0: as many as there are (natural mixing)."""

    label_smoothing: float = _read_by(0.0, "cross_entropy")
    """Share of each target spread evenly over the vocabulary."""
    estimator: str = field(default="full", metadata={"readers": frozenset({"reverse_kl"}), "young": True})
    """How the reverse KL is computed: `full` (over the vocabulary) or `policy_gradient` (from the token that the
    student sampled: its advantage log P - log Q, without gradient, times the gradient of log Q)."""
    jsd_teacher_weight: float = _read_by(0.5, "jsd")
    """Weight of the teacher in the generalised JSD's mixture (GKD's beta)."""
    skew: float = _read_by(0.1, "skew_forward_kl", "skew_reverse_kl")
    """Weight of the other model in the skewed side of a skew divergence (DistiLLM's alpha)."""
    divergence_temperature: float = _read_by(1.0, *TOKEN_DIVERGENCES)
    """Temperature of both distributions inside the divergence; the divergence is multiplied by its square."""
    cross_entropy_weight: float = _read_by(0.0, *DIVERGENCES[1:])
    """Weight of cross-entropy on the sequences' own tokens: a share for divergences of distributions,
    a factor beside the others for `features`, `relations`, `uld` and `spans`."""
    forward_kl_weight: float = _read_by(0.0, *HIDDEN)
    """Factor of the forward KL beside a hidden divergence."""
    hidden_weight: float = _read_by(1.0, *HIDDEN)
    """Factor of the hidden divergence."""
    cross_tokenizer_weight: float = _read_by(1.0, *CROSS)
    """Factor of `uld` or `spans` (ULD's lambda)."""
    span_temperature: float = _read_by(1.0, "spans")
    """Likelihoods of chunks are compared as p ** (1 / temperature) (ALM's tau); the loss carries the factor."""
    relation_heads: int = _read_by(0, "relations")
    """Relation heads queries, keys and values are split into; 0: the student's attention heads."""

    def __post_init__(self) -> None:
        check_choice("sequences", self.sequences, SEQUENCES)
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_choice("control", self.control, CONTROLS)
        check_choice("estimator", self.estimator, ("full", "policy_gradient"))
        if self.estimator == "policy_gradient" and self.divergence == "reverse_kl":
            self._check_policy_gradient()
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise refuse("span", self.span, "a phase trains a part of the budget, 0 <= start < end <= 1")

    @property
    def other_rows(self) -> bool:
        """Whether it trains on other rows than the cell's human ones: synthetic rows, alone or mixed with them."""
        return self.sequences in ("synthetic", "mixed")

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher is part of this phase's identity."""
        return self.reads("teacher") and not (self._unheard and self.sequences in ("gold", "student"))

    @property
    def queries_teacher(self) -> bool:
        """Whether the teacher's distributions are read while the phase trains, live or from a cache."""
        return (self.divergence != "cross_entropy" and not self._unheard) or self.sequences == "interleaved"

    @property
    def needs_warmup(self) -> bool:
        """Whether the phase fails for a student without a warm-up: its loss is flat there, or the student generates."""
        writes = self.sequences in ("student", "interleaved")
        return self.queries_teacher and (writes or self.divergence != "forward_kl")

    @property
    def reads_answers(self) -> bool:
        """Whether answers of the data are read: trained on, shown to a teacher, or used to train the teacher `self`."""
        if self.sequences == "student":
            return self.adaptive or self.student_share < 1 or self.teacher == "self"
        return self.sequences not in ("teacher", "interleaved") or self.teacher == "self"

    @property
    def _unheard(self) -> bool:
        # counts of the phase's own tokens take the place of the teacher
        return self.control == "unigram" and self.divergence in TOKEN_DIVERGENCES

    def reads(self, name: str) -> bool:
        """Whether the value of that name can change a number of this phase."""
        readers = self.__dataclass_fields__[name].metadata.get("readers")
        return readers is None or bool(readers & {self.sequences, self.divergence})

    def _check_policy_gradient(self) -> None:
        """Raise SettingsError unless the text is what the estimate is unbiased on: the student's own samples."""
        wanted = {"sequences": "student", "student_share": 1.0, "sampling_temperature": 1.0, "sampling_top_p": 1.0}
        wanted |= {"divergence_temperature": 1.0, "control": "none"}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise refuse(
                    f"method.{name}",
                    getattr(self, name),
                    f"the policy gradient's mean is the reverse KL's gradient only at {value}",
                    f"set method.{name}={value}, or method.estimator=full",
                )

    def normal(self) -> "TrainingPhase":
        """The same phase in normal form: phases that train the same way are equal."""
        phase = replace(self, span=(round(self.span[0], 9), round(self.span[1], 9)))  # 1 - 0.9 is 0.1
        if phase.sequences == "student" and phase.student_share == 0:
            phase = replace(phase, sequences="gold")
        if phase.sequences == "student" and not phase.adaptive:
            phase = replace(phase, replay_rows=TrainingPhase.replay_rows)
        if phase.synthetic_ratio > 0:
            phase = replace(phase, synthetic_rows=TrainingPhase.synthetic_rows)
        if phase.self_consistency == 0:
            phase = replace(phase, consistency_samples=TrainingPhase.consistency_samples)
        if phase.divergence == "jsd" and phase.jsd_teacher_weight in (0, 1):
            phase = replace(phase, divergence="reverse_kl" if phase.jsd_teacher_weight else "forward_kl")
        if phase.divergence in ("skew_forward_kl", "skew_reverse_kl") and phase.skew == 0:
            phase = replace(phase, divergence=phase.divergence.removeprefix("skew_"))
        if phase.divergence in TOKEN_DIVERGENCES and phase.cross_entropy_weight == 1:
            phase = replace(phase, divergence="cross_entropy")
        if not phase.uses_teacher:
            phase = replace(phase, teacher=TrainingPhase.teacher)
        unread: dict[str, Any] = {one.name: one.default for one in fields(phase) if not phase.reads(one.name)}
        return replace(phase, **unread)

    def identity(self) -> dict[str, Any]:
        """Every value the normal form reads, as plain JSON types."""
        phase = self.normal()
        values = {
            one.name: getattr(phase, one.name)
            for one in fields(phase)
            # a value that came later has no part in the identity at its default, so that earlier addresses stay
            if phase.reads(one.name) and not (one.metadata.get("young") and getattr(phase, one.name) == one.default)
        }
        return values | {"span": [float(share) for share in phase.span]}

    @classmethod
    def of(cls, identity: dict[str, Any]) -> "TrainingPhase":
        """The phase an identity was taken from."""
        return cls(**{**identity, "span": tuple(identity["span"])})


def spans_of_own_rows(phases: Sequence[TrainingPhase]) -> tuple[TrainingPhase, ...]:
    """The phases with spans of the part of training on their own rows: those on human rows divide one budget, those on
    synthetic rows another, each in proportion to the shares of the recipe.

    `(synthetic 0 to 0.9, human 0.9 to 1)` becomes `(synthetic 0 to 1, human 0 to 1)`.
    """
    totals: dict[bool, float] = {}
    for phase in phases:
        totals[phase.other_rows] = totals.get(phase.other_rows, 0.0) + phase.span[1] - phase.span[0]
    if len(totals) == 1:
        return tuple(phases)
    found, begun = [], dict.fromkeys(totals, 0.0)
    for phase in phases:
        whole, start = totals[phase.other_rows], begun[phase.other_rows]
        end = start + phase.span[1] - phase.span[0]
        begun[phase.other_rows] = end
        found.append(replace(phase, span=(start / whole, min(1.0, end / whole))).normal())
    return tuple(found)


CHECKS = 10
"""Evaluations of the validation loss in a phase with at least as many steps, without the first one."""
