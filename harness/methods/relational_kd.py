"""Relational distillation: tokens resemble each other in the student as they do in the teacher.

MiniLMv2 (Wang et al. 2021, arXiv 2012.15828): relations among queries, among keys and among values of one
layer of each model, added to the forward KL on the data's own answers; `training/losses/hidden.py` has the equation
and names the layers. The models' widths and depths may differ and nothing is projected, unlike `feature_kd.py`.

    Method(relation_heads=8)        # 8 must divide both models' query widths
"""

from dataclasses import dataclass

from harness.config.checks import refuse
from harness.config.recipe import TrainingPhase
from harness.methods._checks import check_beside


@dataclass
class Method:
    """Gold answers x forward KL or cross-entropy, and relations of queries, keys and values."""

    relation_heads: int = 0
    """Equal parts that queries, keys and values are split into; it must divide both models' widths; 0: the student's
    attention heads. The paper uses more than there are attention heads: 48 for 12, 64 for 16."""
    hidden_weight: float = 1.0
    """Factor of the relations' KL, in nats per token, summed over queries, keys and values; above 0. The
    default is ours: the paper trains on relations alone, before any task."""
    forward_kl_weight: float = 1.0
    """Factor of the forward KL from the teacher, in nats per token; 0 or above."""
    cross_entropy_weight: float = 0.0
    """Factor of cross-entropy on the data's answers, in nats per token; 0 or above."""

    def __post_init__(self) -> None:
        if self.relation_heads < 0:
            raise refuse("method.relation_heads", self.relation_heads, "it is 0 (the student's heads) or above")
        check_beside("relations", self.hidden_weight, self.forward_kl_weight, self.cross_entropy_weight)

    def phases(self) -> tuple[TrainingPhase, ...]:
        """One phase."""
        return (
            TrainingPhase(
                divergence="relations",
                hidden_weight=self.hidden_weight,
                forward_kl_weight=self.forward_kl_weight,
                cross_entropy_weight=self.cross_entropy_weight,
                relation_heads=self.relation_heads,
            ),
        )
