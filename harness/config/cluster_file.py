"""A cluster's file, read: YAML in which a name that is given twice, or a tab, is refused with its line.

read_cluster_file(Path("slurm/dev.yaml"))["partition"]      # "low"
"""

import re
from pathlib import Path
from typing import Any

import yaml

from harness.config.checks import SettingsError


def read_cluster_file(path: Path) -> dict[str, Any]:
    """The settings in a cluster's file; lists and mappings of plain values.

    Raises SettingsError, with the line, for what is no YAML, and for a name that is given twice.
    """
    shown = f"slurm/{path.name}"
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"slurm={path.stem!r} cannot be run: {shown} cannot be read ({error}).") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        why = " ".join(filter(None, (error.context, error.problem)))
        way_out = "YAML is indented with spaces; correct the line"
        why = f"{shown} is no YAML{line} ({why})"
        raise SettingsError(f"slurm={path.stem!r} cannot be run: {why}; {way_out}.") from None
    except yaml.YAMLError as error:
        why = str(error).splitlines()[0]
        raise SettingsError(f"slurm={path.stem!r} cannot be run: {shown} is no YAML ({why}).") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        why = f"{shown} has no settings by name"
        raise SettingsError(f"slurm={path.stem!r} cannot be run: {why}; see slurm/example_a100.yaml.")
    return found


class _OnceLoader(yaml.SafeLoader):
    """Reads YAML as OmegaConf does (1e10 is a number), and refuses a name that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name is plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_OnceLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\.\d+([eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)
