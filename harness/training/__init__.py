"""Training: one trainer for every method.

Losses (`losses/`), student-generated text, checkpoints, FLOP-matched budgets, and the report of a fit. Which phases
a method has is in `methods/`; the stage that calls `fit` is `stages/train.py`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "trainer": ["DivergedError", "fit"],
    },
)
