"""Plan: from settings to a graph of addressed stages, without running anything.

Composing and sweeping, a cell's data, model, signal and evaluation stages, tuning, the estimate of costs, claims
declared beforehand, and the frozen plan that everything later reads. Making stages is `stages/`, running them
`execution/`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "cell_plan": ["CellPlan", "Plan", "plan_cell"],
        "claims": ["Claim", "declare"],
        "compose": ["Composed"],
        "graph": ["Stage"],
        "frozen": ["freeze", "frozen_plan"],
    },
)
