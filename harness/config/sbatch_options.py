"""Options of sbatch: those a cluster's `extra` may add, and those the harness sets itself.

check_extra("slurm.extra", {"reservation": "course", "exclusive": True})
check_extra("slurm.extra", {"time": 60})      # SettingsError: set slurm.resources.minutes
"""

import re
from collections.abc import Mapping
from typing import Any

from harness.config.checks import is_number, refuse

SETTING_OF = {
    "job-name": "grid",
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "constraint": "slurm.constraint",
    "exclude": "slurm.exclude",
    "time": "slurm.resources.minutes",
    "nodes": "slurm.resources.nodes",
    "ntasks": "slurm.resources.processes",
    "ntasks-per-node": "slurm.resources.processes",
    "cpus-per-task": "slurm.resources.cpus",
    "gpus-per-node": "slurm.resources.gpus",
    "mem": "slurm.resources.memory_gb",
    "signal": "slurm.notice_seconds",
    "array": "slurm.throttle",
    "requeue": "slurm.restarts",
    "no-requeue": "slurm.restarts",
}
"""Options that the harness sets from settings of its own."""
RESERVED = (
    *("dependency", "kill-on-invalid-dep", "output", "error", "open-mode", "wckey", "wrap", "parsable", "export"),
    *("export-file", "chdir", "test-only", "wait", "clusters"),
)
"""Options on which the harness relies as it sets or leaves them."""
LETTERS = dict(J="job-name", p="partition", A="account", q="qos", C="constraint", x="exclude", t="time", N="nodes")
LETTERS |= dict(n="ntasks", c="cpus-per-task", a="array", d="dependency", o="output", e="error", D="chdir", W="wait")
LETTERS |= dict(M="clusters")
"""Long names of the options above that sbatch also takes as a letter."""


def check_word(name: str, value: Any) -> None:
    """Raise SettingsError unless `value` is one word of a line of sbatch options; null passes."""
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[\w.,:&|*()\[\]=+-]+", value)):
        raise refuse(name, value, "it must be one word of letters, digits and . , : & | * ( ) [ ] = + -", "correct it")


def check_extra(where: str, extra: Mapping[str, Any]) -> None:
    """Raise SettingsError for an option of sbatch that the harness sets itself, or a value that is no single word."""
    for name, value in dashed(extra).items():
        option = LETTERS.get(name, name)
        if not re.fullmatch("[a-z][a-z0-9-]+", option):
            way_out = "write e.g. reservation, gres or licenses"
            raise refuse(f"{where}.{name}", value, "it must be the long name of an option of sbatch", way_out)
        if option in SETTING_OF or option in RESERVED:
            way_out = f"set {SETTING_OF[option]}" if option in SETTING_OF else "leave it out"
            raise refuse(f"{where}.{name}", value, "the harness sets this option itself", way_out)
        plain = value is None or isinstance(value, bool) or is_number(value)
        if not (plain or (isinstance(value, str) and re.fullmatch(r"[^\s\x00-\x1f\x7f'\"`$;\\]+", value))):
            raise refuse(f"{where}.{name}", value, "it must be a number, true, or one word without quotes, $ and ;")


def dashed(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Options as sbatch writes them: `mem_per_cpu` is `mem-per-cpu`."""
    return {str(name).lstrip("-").replace("_", "-"): value for name, value in extra.items()}
