"""Two-stage distillation for domains with few human rows: synthetic rows first, human rows second.

The teacher sees a few human rows in context and writes new prompts with answers (arXiv 2606.22942);
the student trains on those with cross-entropy, then on the human rows with a smaller learning rate.
`kd.py`, `logit_kd.py` and `sft.py` are the second stage alone.

    Method(synthetic_rows=1500, examples_in_context=3, synthetic_share=0.9)
"""

from dataclasses import dataclass

from harness.checks import check_choice, check_positive, refuse
from harness.recipe import TrainStage


@dataclass
class Method:
    """Synthetic rows x cross-entropy, human rows x a divergence or cross-entropy."""

    synthetic_rows: int = 1500
    """Rows the teacher is asked to write; the human rows stay as they are, so this sets the ratio."""
    examples_in_context: int = 3
    """Human rows shown to the teacher before each row it writes."""
    synthetic_temperature: float = 1.0
    """Temperature at which the teacher writes prompts and answers."""
    synthetic_share: float = 0.9
    """Share of the budget's steps spent on synthetic rows, above 0; 1 is the control without human rows."""
    second: str = "kd"
    """How human rows are trained: `kd` (JSD, student text half of the steps), `logit_kd` (forward KL on gold)
    or `sft`."""
    learning_rate_scale: float = 0.3
    """Multiplies the budget's learning rate on human rows; too strong a second stage undoes the first."""
    order: str = "synthetic_first"
    """`synthetic_first`, or `human_first`: the control for the order of stages."""

    def __post_init__(self) -> None:
        for name in ("synthetic_rows", "examples_in_context", "synthetic_temperature", "learning_rate_scale"):
            check_positive(f"method.{name}", getattr(self, name))
        if not 0 < self.synthetic_share <= 1:
            raise refuse(
                "method.synthetic_share",
                self.synthetic_share,
                "a share lies above 0 and at most at 1",
                "training without synthetic rows is method=sft or method=kd",
            )
        check_choice("method.second", self.second, ("logit_kd", "kd", "sft"))
        check_choice("method.order", self.order, ("synthetic_first", "human_first"))

    def stages(self) -> tuple[TrainStage, ...]:
        """The two stages in order; one when the whole budget goes to synthetic rows."""
        if self.synthetic_share == 1:
            return (self._synthetic((0.0, 1.0)),)
        if self.order == "synthetic_first":
            border = self.synthetic_share
            return (self._synthetic((0.0, border)), self._human((border, 1.0)))
        border = 1 - self.synthetic_share
        return (self._human((0.0, border)), self._synthetic((border, 1.0)))

    def _synthetic(self, span: tuple[float, float]) -> TrainStage:
        return TrainStage(
            sequences="synthetic",
            span=span,
            synthetic_rows=self.synthetic_rows,
            examples_in_context=self.examples_in_context,
            sampling_temperature=self.synthetic_temperature,
        )

    def _human(self, span: tuple[float, float]) -> TrainStage:
        scale = self.learning_rate_scale
        if self.second == "sft":
            return TrainStage(span=span, learning_rate_scale=scale)
        if self.second == "logit_kd":
            return TrainStage(divergence="forward_kl", span=span, learning_rate_scale=scale)
        return TrainStage(
            sequences="student",
            divergence="jsd",
            span=span,
            student_share=0.5,
            learning_rate_scale=scale,
        )
