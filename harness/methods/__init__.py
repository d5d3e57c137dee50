"""Methods: each file here is one recipe of training stages, sequences x divergence x share of the budget.

A method is a dataclass `Method` whose fields are its settings and whose `stages()` returns the recipe.
The file's name is the method's name; nothing else needs to change to add one. Recipes are put into one
normal form, so two methods that train the same way have the same address (`logit_kd` = `kd` with
student share 0 and forward KL after no warm-up).

    Method = load_method("kd")
    Method(student_share=0.5).stages()
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.config import check_choice, refuse
from harness.registry import load_from, name_of, names_in

SEQUENCES = ("gold", "teacher", "synthetic", "student")
DIVERGENCES = ("cross_entropy", "forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True)
class TrainStage:
    """One training stage of a recipe; every value can change a number, so every value is identity."""

    sequences: str = "gold"
    """Where tokens come from: `gold`, `teacher` (its answers), `synthetic` (its prompts and answers),
    `student` (with probability `student_share` per step the student's own text, else gold)."""
    divergence: str = "cross_entropy"
    """How student and teacher are compared at each scored position."""
    span: tuple[float, float] = (0.0, 1.0)
    """The part of the budget's steps this stage trains, e.g. (0.0, 0.2) for a warm-up."""
    student_share: float = 0.0
    """Probability per optimizer step of training on student text (GKD's lambda)."""
    beta: float = 0.0
    """Weight of the teacher in the generalised JSD's mixture; only read by `jsd`."""
    cross_entropy_weight: float = 0.0
    """Share of cross-entropy on the sequences' own tokens, mixed into a divergence."""
    divergence_temperature: float = 1.0
    """Temperature of both distributions inside the divergence; the loss carries T^2."""
    sampling_temperature: float = 1.0
    """Temperature of student or teacher text; 0 is greedy."""
    learning_rate_scale: float = 1.0
    """Multiplies the budget's learning rate."""
    synthetic_rows: int = 0
    """Synthetic rows the teacher is asked to write; only read by `synthetic`."""
    examples_in_context: int = 0
    """Human rows shown to the teacher for each synthetic one."""
    shuffled: bool = False
    """Control: the teacher's answers are dealt to other rows of the same set."""

    def __post_init__(self) -> None:
        check_choice("sequences", self.sequences, SEQUENCES)
        check_choice("divergence", self.divergence, DIVERGENCES)
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise refuse("span", self.span, "a stage trains a part of the budget, 0 <= start < end <= 1")

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher is part of this stage's identity."""
        return self.divergence != "cross_entropy" or self.sequences in ("teacher", "synthetic")

    def normal(self) -> "TrainStage":
        """The same stage in normal form: one spelling for every way to say it."""
        stage = replace(self, span=(round(self.span[0], 9), round(self.span[1], 9)))  # 1 - 0.9 is 0.1
        if stage.sequences == "student" and stage.student_share == 0:
            stage = replace(stage, sequences="gold")
        if stage.divergence == "jsd" and stage.beta in (0, 1):
            stage = replace(stage, divergence="reverse_kl" if stage.beta else "forward_kl")
        if stage.cross_entropy_weight == 1:
            stage = replace(stage, divergence="cross_entropy")
        if stage.divergence != "jsd":
            stage = replace(stage, beta=0.0)
        if stage.divergence == "cross_entropy":
            stage = replace(stage, cross_entropy_weight=0.0, divergence_temperature=1.0)
        if stage.sequences != "student":
            stage = replace(stage, student_share=0.0)
        if stage.sequences == "gold":
            stage = replace(stage, sampling_temperature=1.0, shuffled=False)
        if stage.sequences != "synthetic":
            stage = replace(stage, synthetic_rows=0, examples_in_context=0)
        return stage

    def identity(self) -> dict[str, Any]:
        """Every value of the normal form, as plain JSON types."""
        values = asdict(self.normal())
        values["span"] = [float(share) for share in values["span"]]
        return values


def method_names() -> tuple[str, ...]:
    """Names of all methods: the files beside this one."""
    return names_in(__path__)


def load_method(name: str) -> type[Any]:
    """The `Method` dataclass of one file; unknown names are refused with the list of real ones."""
    return load_from(__name__, __path__, name, "method").Method


def method_name(method: object) -> str:
    """The name of a method instance: its file."""
    return name_of(method)
