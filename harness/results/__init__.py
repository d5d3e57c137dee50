"""Results: from a frozen plan and a store to numbers.

Records, tables, paired gains, contamination and exposure, findings on the declared claims, decisions; `stats/` has the
intervals, pure functions. Nothing here runs or draws anything; what a person reads is `report/`.
"""

from harness import notebook_function
from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "outcome": ["Outcome"],
        "findings": ["Finding", "judge"],
        "table": ["summary", "tidy"],
    },
)

notebook_function(__name__)
