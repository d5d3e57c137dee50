"""Diverged: the errors of models whose numbers are not finite, and the last check before a stage's facts are published.

No torch here: the process that runs stages knows the errors too. `finite.py` looks at weights.

    check_facts({"metrics": {"last_loss": math.nan}})    # DivergedError: metrics.last_loss is nan
"""

import math
from collections.abc import Mapping
from typing import Any


class DivergedError(RuntimeError):
    """Numbers of a model are not finite: its loss, its weights or what it gives an item."""


class TeacherDivergedError(DivergedError):
    """The same of a teacher: its students are not to blame."""


def check_facts(facts: Mapping[str, Any], name: str = "") -> None:
    """Raise DivergedError for the first fact that is no number; JSON could not hold it."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            check_facts(value, f"{name}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise DivergedError(f"{name}{key} is {value}")
