"""Config: what a person may set, typed and refused early.

Dataclasses with defaults and checks that need no data: a cell, a model, a budget, a training recipe, a teacher's
signal, evaluations, a machine, a cluster. Checks that look at files are in `execution/preflight.py`; presets are in
`conf/`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "budget": ["Budget"],
        "cell": ["Cell", "Settings"],
        "checks": ["SettingsError", "refuse"],
        "cluster": ["Cluster"],
        "evaluation": ["Evals", "Measure"],
        "machine": ["Launch", "Machine"],
        "model": ["Model", "Student", "Teacher"],
        "recipe": ["TrainingPhase"],
        "teacher_signal": ["Signal"],
    },
)
