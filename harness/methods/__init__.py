"""Methods: each file here is one recipe of training phases (`config/recipe.py`).

A method is a dataclass `Method` whose fields are its settings and whose `phases()` returns the recipe.
The file's name is the method's name; nothing else needs to change to add one. Two methods that train the
same way have the same address (`logit_kd` = `kd` with student share 0 and forward KL after no warm-up).

    Method = load_method("kd")
    Method(student_share=0.5).phases()
"""

from typing import Any

from harness.config.registry import load_from, name_of, names_in


def method_names() -> tuple[str, ...]:
    """Names of all methods: the files beside this one."""
    return names_in(__path__)


def load_method(name: str) -> type[Any]:
    """The `Method` dataclass of one file; unknown names are refused with the list of real ones."""
    return load_from(__name__, __path__, name, "method").Method


def method_name(method: object) -> str:
    """The name of a method instance: its file."""
    return name_of(method)
