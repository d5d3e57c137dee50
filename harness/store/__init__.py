"""Store: addresses, and the immutable artifacts behind them, on a shared filesystem without a daemon.

A fingerprint names a stage, a rename publishes its artifact, and a lease says that a process is making it. Stages are
defined in `plan/graph.py`; the files of an artifact are described by the module that makes it (`stages/`).
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
