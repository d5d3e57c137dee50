"""Two-phase distillation for domains with few human rows: synthetic rows first, human rows second.

The teacher sees a few human rows in context and generates new prompts with answers (arXiv 2606.22942); the
student trains on those, then on the human rows with a smaller learning rate. The settings divide the budget and do not
change it. Controls: `order=human_first`, `order=mixed` (one phase, all rows together, natural or with `human_share`),
`synthetic_share=1` (synthetic rows alone); `kd.py`, `logit_kd.py` and `sft.py` are the human rows alone.

    Method(synthetic_rows=1500, examples_in_context=3, synthetic_share=0.9)
    Method(ratio=20, first="logit_kd", second="sft", near_duplicate=0.7)
"""

import math
from dataclasses import dataclass

from harness.config.checks import check_choice, check_positive, refuse
from harness.config.recipe import TrainingPhase


@dataclass
class Method:
    """Synthetic rows x cross-entropy or a divergence, human rows x a divergence or cross-entropy."""

    synthetic_rows: int = 1500
    """Rows that the teacher generates, unless `ratio` sets their number."""
    ratio: float | None = None
    """Synthetic rows per human training row, in place of `synthetic_rows`; it is the same at every data fraction."""
    examples_in_context: int = 3
    """Human rows in the teacher's context for each row it generates."""
    synthetic_temperature: float = 1.0
    """Temperature at which the teacher generates prompts and answers."""
    synthetic_share: float = 0.9
    """Share of the budget's steps spent on synthetic rows, above 0; 1 is the control without human rows."""
    first: str = "sft"
    """How synthetic rows (and those of `order=mixed`) are trained: `sft`, or `logit_kd` (forward KL)."""
    second: str = "kd"
    """How human rows are trained: `kd` (JSD, student-generated sequences in half of the steps), `logit_kd` (forward KL
    on gold) or `sft`."""
    learning_rate_scale: float = 0.3
    """Multiplies the budget's learning rate on human rows, in either order; a large one in phase 2 undoes phase 1. Not
    read by `order=mixed`."""
    order: str = "synthetic_first"
    """`synthetic_first`; `human_first`, the control for the order; `mixed`, the control for having two phases."""
    human_share: float = 0.0
    """Share of visits that are human rows under `order=mixed`; 0: their share of all rows."""
    warmup: float = 0.2
    """Share of the human rows' steps spent on cross-entropy first under `order=human_first second=kd`, where the JSD
    would otherwise start from an untrained student (see `kd`); 0 or more and below 1."""
    least_prompt_tokens: int = 1
    """Drops synthetic rows with a shorter prompt, in tokens; raise it where a teacher generates fragments."""
    least_answer_tokens: int = 1
    """Drops synthetic rows with a shorter answer, in tokens, the end of turn among them."""
    near_duplicate: float = 0.0
    """Drops a synthetic prompt whose ROUGE-L F1 with a kept, human, validation or held-out one is this high.
    Self-Instruct's 0.7 suits open-ended prompts; 0 drops exact duplicates alone, for corpora of templates, where all
    prompts are similar."""
    verified: bool = False
    """Keeps only synthetic answers that are right; prompts that the corpus cannot verify are dropped."""
    self_consistency: float = 0.0
    """Keeps a synthetic answer only if this share of more samples agrees with it (arXiv 2203.11171); 0: off."""
    consistency_samples: int = 5
    """Further answers per prompt that are sampled for `self_consistency`."""

    def __post_init__(self) -> None:
        for name in ("synthetic_rows", "examples_in_context", "synthetic_temperature", "learning_rate_scale"):
            check_positive(f"method.{name}", getattr(self, name))
        for name in ("least_prompt_tokens", "least_answer_tokens", "consistency_samples"):
            check_positive(f"method.{name}", getattr(self, name))
        if self.ratio is not None:
            check_positive("method.ratio", self.ratio)
        if not 0 < self.synthetic_share <= 1:
            raise refuse(
                "method.synthetic_share",
                self.synthetic_share,
                "a share must be above 0 and at most 1",
                "training without synthetic rows is method=sft or method=kd",
            )
        if not 0 <= self.human_share < 1:
            raise refuse(
                "method.human_share",
                self.human_share,
                "a share must be at least 0 and below 1",
                "training on human rows alone is method=sft",
            )
        if not 0 <= self.warmup < 1:
            raise refuse("method.warmup", self.warmup, "it must be at least 0 and below 1", "or set method.second=sft")
        for name in ("near_duplicate", "self_consistency"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise refuse(f"method.{name}", value, "a share is a number from 0 (off) to 1")
        check_choice("method.first", self.first, ("sft", "logit_kd"))
        check_choice("method.second", self.second, ("kd", "logit_kd", "sft"))
        check_choice("method.order", self.order, ("synthetic_first", "human_first", "mixed"))

    def phases(self) -> tuple[TrainingPhase, ...]:
        """The phases in order; one when rows are mixed or the whole budget goes to synthetic rows."""
        if self.order == "mixed":
            return (self._synthetic((0.0, 1.0), sequences="mixed"),)
        if self.synthetic_share == 1:
            return (self._synthetic((0.0, 1.0)),)
        if self.order == "synthetic_first":
            border = self.synthetic_share
            return (self._synthetic((0.0, border)), self._human((border, 1.0)))
        border = 1 - self.synthetic_share
        synthetic = self._synthetic((border, 1.0))
        if self.second != "kd" or not self.warmup:
            return (self._human((0.0, border)), synthetic)
        warm = border * self.warmup
        warmup = TrainingPhase(span=(0.0, warm), learning_rate_scale=self.learning_rate_scale)
        return (warmup, self._human((warm, border)), synthetic)

    def _synthetic(self, span: tuple[float, float], sequences: str = "synthetic") -> TrainingPhase:
        return TrainingPhase(
            sequences=sequences,
            divergence="forward_kl" if self.first == "logit_kd" else "cross_entropy",
            span=span,
            synthetic_rows=self.synthetic_rows,
            synthetic_ratio=float(self.ratio or 0),
            examples_in_context=self.examples_in_context,
            sampling_temperature=self.synthetic_temperature,
            human_share=self.human_share,
            least_prompt_tokens=self.least_prompt_tokens,
            least_answer_tokens=self.least_answer_tokens,
            near_duplicate=self.near_duplicate,
            verified=self.verified,
            self_consistency=self.self_consistency,
            consistency_samples=self.consistency_samples,
        )

    def _human(self, span: tuple[float, float]) -> TrainingPhase:
        scale = self.learning_rate_scale
        if self.second == "sft":
            return TrainingPhase(span=span, learning_rate_scale=scale)
        if self.second == "logit_kd":
            return TrainingPhase(divergence="forward_kl", span=span, learning_rate_scale=scale)
        return TrainingPhase(
            sequences="student",
            divergence="jsd",
            span=span,
            student_share=0.5,
            learning_rate_scale=scale,
        )
