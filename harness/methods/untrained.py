"""Nothing is trained: the pretrained base model of the student, a row of the table to compare trained students with.

Also the way to score a model without a study: `method=untrained student=hf student.path=FOLDER evals=quick`.
"""

from dataclasses import dataclass

from harness.config.recipe import TrainingPhase


@dataclass
class Method:
    """No training phase."""

    def phases(self) -> tuple[TrainingPhase, ...]:
        """None: the student that is scored is the base model."""
        return ()
