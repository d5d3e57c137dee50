"""Registry: what is found by name: kinds in a folder, and the public names of a package.

Nouns with many kinds live in a folder, one kind a file; the file's name is the kind's name. Methods, corpora and
evaluations are found this way, so adding one is adding a file.

    names_in(harness.methods.__path__)    # ("cross_kd", "distillm", "feature_kd", ...)
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from harness.config.checks import check_choice


def names_in(folder: Iterable[str]) -> tuple[str, ...]:
    """Names of the kinds in a package's `__path__`: its files but those that begin with an underscore."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_")))


def load_from(package: str, folder: Iterable[str], name: str, setting: str) -> ModuleType:
    """The file of one kind, imported. Raises SettingsError for an unknown name, with `setting` and the real ones."""
    # checked before the import, so that only the name of a file of the folder is ever imported
    check_choice(setting, name, names_in(folder))
    return importlib.import_module(f"{package}.{name}")


def name_of(instance: object) -> str:
    """The kind of an instance: the file its class is in."""
    return type(instance).__module__.rsplit(".", 1)[-1]


def public_face(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A package's `__getattr__`: its public names by the module that has them, imported at first use.

    Imported late, so that reading one name of a package does not load all of it (PEP 562). The function raises
    AttributeError for any other name.
    """
    home = {name: module for module, found in names.items() for name in found}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    __getattr__.names = names  # type: ignore[attr-defined]
    return __getattr__
