"""Nothing is trained: the student as it was adopted, a row of the table beside what training made of it.

Also the way to score a model without a study: `method=untrained student=hf student.path=FOLDER evals=quick`.
"""

from dataclasses import dataclass

from harness.config.recipe import TrainStage


@dataclass
class Method:
    """No training stage."""

    def stages(self) -> tuple[TrainStage, ...]:
        """None: the student that is scored is the base model."""
        return ()
