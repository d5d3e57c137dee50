"""Store: addresses, and the immutable artifacts behind them, on a shared filesystem without a daemon.

A fingerprint names a stage, a rename publishes its artifact, a claim says that somebody is making it. What a stage
is stands in `plan/graph.py`; what an artifact holds is its maker's business (`stages/`).
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "fingerprint": ["canonical", "differences"],
        "partial_output": ["PartialOutput"],
        "status": ["StageState", "stage_state"],
        "store": ["Store"],
    },
)
