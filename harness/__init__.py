"""When does knowledge distillation beat plain fine-tuning, and what does it cost?

    from harness import grid, run, results, report
    finished = run(grid(data_frac=[0.01, 0.1, 1.0], method=["sft", "kd"]))
    results(finished.grid); report(finished.grid)

Doors: `run`, `grid`, `job`, `new_student` (command lines) and `api` (Python). Rooms, each importing only what
stands before it:

    config      what a person may set              plan        from settings to addressed stages
    runtime     facts of the running process       stages      makers, one kind of artifact each
    store       addresses and artifacts            execution   running a plan, here or on Slurm
    methods     one method a file                  results     from a store to numbers
    data        corpora, templates, rows           report      what a person reads
    models      weights and forward passes
    teachers    where a teacher's signal comes from
    training    one trainer, every loss
    evals       scoring a model item by item
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
