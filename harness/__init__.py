"""When does knowledge distillation beat plain fine-tuning, and what does it cost?

    from harness import grid, run, results, report
    finished = run(grid(data_frac=[0.01, 0.1, 1.0], method=["sft", "kd"]))
    results(finished.grid); report(finished.grid)

Entry points: `run`, `grid`, `job`, `new_student` (command lines) and `api` (Python). Packages, each importing only
packages above it:

    config      what a person may set
    runtime     facts of the running process
    store       addresses and artifacts
    methods     one file per method
    data        corpora, chat templates, rows
    models      weights and forward passes
    teachers    where a teacher's signal comes from
    training    one trainer, every loss
    evals       scoring a model item by item
    plan        from settings to addressed stages
    stages      one function per kind of artifact
    execution   running a plan, here or on Slurm
    results     from finished stages to numbers
    report      what a person reads
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at every import it says what would be faster


class _NotebookFunction(ModuleType):
    """A module that can be called: as the function of `harness.api` that has its name."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        door = importlib.import_module("harness.api")
        return getattr(door, self.__name__.rpartition(".")[2])(*given, **named)


def notebook_function(module: str) -> None:
    """Let the module be called, so that `from harness import grid, run, results, report` gives a notebook four verbs.

    Both the command line and the verb are called `grid`; a name in a package is one object, so the module is callable.
    """
    sys.modules[module].__class__ = _NotebookFunction
