"""Teachers: where a teacher's signal comes from.

Live logits, cached logits (top-k or sampled) and generated text; and, for a teacher served over HTTP, the client
and the server's process. How a signal is compared with the student's distribution is in `training/losses/`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "signals": ["CachedTeacher", "DenseSignal", "LiveTeacher", "SparseSignal"],
        "teacher": ["open_teacher"],
    },
)
