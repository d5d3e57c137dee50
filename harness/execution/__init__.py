"""Execution: running a plan.

Checks before the first step, attempts with failure classes and retries, launchers on this machine (`launchers/`),
processes that train together (`distributed/`), clusters (`slurm/`), the live view, Weights & Biases. Nothing is trained
here: a stage is started by the name of its maker, in `stages/`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "executor": ["execute"],
        "runner": ["run_grid", "submit_grid"],
    },
)
