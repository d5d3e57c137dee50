"""Cluster: how jobs are submitted to one Slurm cluster, from one YAML file in `slurm/`; never identity.

cluster = Cluster.of({"name": "dev", "resources": [{"minutes": 10, "cpus": 1, "memory_gb": 2}]})
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from harness.config.checks import (
    SettingsError,
    check_at_least,
    check_choice,
    check_known,
    check_name,
    check_positive,
    check_types,
    refuse,
)
from harness.config.sbatch_options import check_extra, check_word, dashed

READ_BYTES_PER_SECOND = 1e9
"""Speed at which bf16 weights are read from a shared file system, for the estimate of a plan."""

STAGE_KINDS = (
    *("mixture", "subset", "base", "train", "labels", "cache", "synthesize", "quantise"),
    *("evaluate", "measure", "overlap"),
)
"""Kinds of stages; `plan/graph.py` names their makers."""


@dataclass(frozen=True)
class Resources:
    """Resources of a job, by its kind of stage and the largest model in it."""

    kinds: Sequence[str] = ()
    """Kinds of stages the rule is for (mixture, subset, base, train, labels, cache, synthesize, quantise, evaluate,
    measure, overlap); none: all."""
    names: Sequence[str] = ()
    """Patterns of the names in addresses, to select single cells, e.g. `on_policy-*` or `kd-1-s0`; none: all."""
    parameters: float | None = None
    """The rule is for models of at most this many parameters; null: of any size."""
    minutes: int = 60
    """Time limit. A stage that needs longer stops with a checkpoint and is queued again."""
    cpus: int = 4
    """CPU cores per process."""
    memory_gb: float | None = 16
    """Memory per node, in GB; null: no `--mem`, for clusters that forbid it or with `extra: {mem-per-cpu: 4G}`."""
    gpus: int = 0
    """GPUs per node; a stage that trains runs one process per GPU."""
    nodes: int = 1
    """Nodes that train a stage together; a job without training gets one node and one process."""
    processes: int | None = None
    """Processes per node where a stage trains; null: one per GPU, or one."""
    shard: bool = False
    """Whether the processes shard model and optimizer (FSDP, `machine.shard`), for models too large for one GPU."""
    teraflops: float = 100
    """TFLOP/s that one GPU is expected to reach in such stages; used by the estimate of a plan alone."""
    partition: str | None = None
    """Partition of these jobs; null: the cluster's."""
    constraint: str | None = None
    """Constraint of these jobs; null: the cluster's."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """More options of sbatch for these jobs, over the cluster's `extra`."""

    def __post_init__(self) -> None:
        self.check("slurm.resources")

    @classmethod
    def of(cls, where: str, settings: Any) -> "Resources":
        """A rule from plain settings; `where` names it in messages. Raises SettingsError for unknown names and values
        of another kind."""
        if not isinstance(settings, Mapping):
            raise refuse(where, settings, "a rule has names and values", "write e.g. {cpus: 4, memory_gb: 16}")
        check_known(where, settings, cls)
        check_types(where, settings, cls)
        lists = {name: tuple(settings.get(name) or ()) for name in ("kinds", "names")}
        try:
            return cls(**{**settings, **lists, "extra": dict(settings.get("extra") or {})})
        except SettingsError as error:
            # the dataclass does not know which of several rules it is
            raise SettingsError(str(error).replace("slurm.resources.", f"{where}.", 1)) from None

    def check(self, where: str) -> None:
        """Raise SettingsError for an amount that no job can have."""
        for name in ("minutes", "cpus", "nodes", "teraflops"):
            check_positive(f"{where}.{name}", getattr(self, name))
        check_positive(f"{where}.memory_gb", 1 if self.memory_gb is None else self.memory_gb)
        check_at_least(f"{where}.gpus", self.gpus, 0)
        check_at_least(f"{where}.processes", self.processes, 1)
        check_at_least(f"{where}.parameters", self.parameters, 0)
        for name in ("partition", "constraint"):
            check_word(f"{where}.{name}", getattr(self, name))
        for kind in self.kinds:
            check_choice(f"{where}.kinds", kind, STAGE_KINDS)
        check_extra(f"{where}.extra", self.extra)
        if self.memory_gb is not None and (given := {"mem-per-cpu", "mem-per-gpu"} & set(dashed(self.extra))):
            name = sorted(given)[0]
            way_out = f"set {where}.memory_gb=null, or leave {name} out"
            raise refuse(f"{where}.extra.{name}", self.extra.get(name), "memory_gb asks for memory already", way_out)

    def fits(self, kind: str, name: str, parameters: float) -> bool:
        """Whether the rule is for a stage of this kind and name with a model of so many parameters."""
        named = not self.names or any(fnmatchcase(name, pattern) for pattern in self.names)
        # a rule without a bound fits any size, so it belongs at the end of the list
        large = self.parameters is not None and parameters > self.parameters
        return named and not large and (not self.kinds or kind in self.kinds)

    def gpu_hours(self, flops: float, parameters: float) -> float:
        """Expected GPU-hours of a stage: the model is read once on every GPU, then they share the arithmetic."""
        # 2 bytes a bf16 weight; seconds summed over the GPUs, each of which reads the whole model
        reading = 2 * parameters / READ_BYTES_PER_SECOND * self.nodes * self.gpus
        return (reading + flops / (self.teraflops * 1e12)) / 3600 if self.gpus else 0.0

    @property
    def tasks_per_node(self) -> int:
        """Processes per node."""
        # a job without a GPU still needs a process
        return self.processes or max(1, self.gpus)

    @property
    def count(self) -> int:
        """Processes that train together."""
        return self.nodes * self.tasks_per_node

    def check_batch(self, batch_size: int) -> None:
        """Raise SettingsError where so many rows a step do not divide among the processes."""
        # a remainder would give some processes more rows than others
        if batch_size % self.count:
            raise refuse(
                "budget.batch_size",
                batch_size,
                f"the rows of a step do not divide among {self.nodes} nodes x {self.tasks_per_node} processes",
                "change slurm.resources.nodes or processes: results stay the same",
            )


@dataclass(frozen=True)
class Serve:
    """How the cluster serves a teacher with `teacher.path=slurm`: one job for each model, while jobs need it."""

    command: str
    """Command that starts the server, without a shell: {model} (`teacher.served_model`), {revision} and {port} are
    filled in. An API key is passed in the environment alone."""
    resources: Resources = field(default_factory=lambda: Resources(processes=1))
    """Resources of its job, on one node. At its time limit it is started again while jobs need it."""
    ready_minutes: float = 30
    """Minutes until the server has to have loaded the model and answered."""
    look_seconds: float = 20
    """Seconds between checks whether a job still needs the server."""

    def __post_init__(self) -> None:
        if "{port}" not in self.command:
            raise refuse(
                "slurm.serve.command", self.command, "the command needs {port}, where the server listens", "add {port}"
            )
        try:
            shlex.split(self.command)
        except ValueError as error:
            why = f"its words cannot be told apart ({str(error).lower()})"
            raise refuse("slurm.serve.command", self.command, why, "close every quote") from None
        known = ("{model}", "{revision}", "{port}")
        if other := [one for one in re.findall(r"\{\w+\}?", self.command) if one not in known]:
            raise refuse("slurm.serve.command", self.command, f"{other[0]} is none of {', '.join(known)}", "correct it")
        if self.resources.nodes != 1:
            raise refuse("slurm.serve.resources.nodes", self.resources.nodes, "a server runs on one node")
        check_positive("slurm.serve.ready_minutes", self.ready_minutes)
        check_positive("slurm.serve.look_seconds", self.look_seconds)

    @classmethod
    def of(cls, settings: Any) -> "Serve":
        """From plain settings. Raises SettingsError for bad values, and for unknown names with the real ones."""
        if not isinstance(settings, Mapping):
            raise refuse("slurm.serve", settings, "it has names and values", "see slurm/example_a100.yaml")
        check_known("slurm.serve", settings, cls)
        if not settings.get("command"):
            missing = "the command that starts the server is missing"
            raise refuse("slurm.serve.command", None, missing, "see slurm/example_a100.yaml")
        check_types("slurm.serve", settings, cls)
        rule = settings.get("resources") or {}
        given = Resources.of("slurm.serve.resources", rule)
        if given.processes not in (None, 1):
            why = "a server is one process, which starts its own"
            raise refuse("slurm.serve.resources.processes", given.processes, why, "leave it out")
        # these choose the jobs a rule is for; here they would be ignored
        chosen = [name for name in ("kinds", "names", "parameters") if rule.get(name)]
        if chosen:
            raise refuse(
                f"slurm.serve.resources.{chosen[0]}",
                rule[chosen[0]],
                "these resources are for every server, so this setting selects nothing",
                "leave it out",
            )
        return cls(**{**settings, "resources": replace(given, processes=1)})

    def words(self, model: str, revision: str | None, port: int) -> list[str]:
        """The command with its values filled in; the revision is the hub's `main` where none was set."""
        values = {"{model}": model, "{revision}": revision or "main", "{port}": str(port)}
        # split first: a value with a space or a quote stays one word
        words = shlex.split(self.command)
        for name, value in values.items():
            words = [word.replace(name, value) for word in words]
        return words


@dataclass(frozen=True)
class Cluster:
    """One cluster; the first rule of `resources` that fits a job is its own."""

    name: str
    """Name of the cluster: its file in `slurm/`, without the suffix."""
    partition: str | None = None
    """Slurm partition of every job without one of its own; null: the cluster's default."""
    account: str | None = None
    """Slurm account that jobs are charged to; null: the user's default."""
    qos: str | None = None
    """Slurm quality of service of every job; null: the account's default."""
    constraint: str | None = None
    """Node features that every job needs, unless its rule has its own, e.g. `a100`; null: any node."""
    exclude: str | None = None
    """Nodes that no job runs on, as `sbatch --exclude` takes them; null: none."""
    setup: Sequence[str] = ()
    """Lines of shell that run before each job: modules, caches."""
    python: str | None = None
    """Command that starts Python on a node, a container's line included; null: this Python."""
    throttle: int = 256
    """Tasks of an array that run at once."""
    restarts: int = 10
    """How many times a stopped job is queued again."""
    notice_seconds: int = 120
    """Seconds before its time limit at which a job receives the signal to write a checkpoint and stop."""
    pack_minutes: float = 10
    """Expected minutes of a job that short cells share; 0: a job for each cell."""
    gpu_hours: float | None = None
    """Limit of a grid's GPU-hours, used and expected ones together; a grid above it is refused before it is submitted.
    Null: no limit."""
    gpu_memory_gb: float | None = None
    """Memory of one GPU, in GB. A grid with a stage that is expected to take more is refused before it is submitted,
    with the settings that would help. Null: not compared."""
    resources: Sequence[Resources] = field(default_factory=lambda: (Resources(),))
    """Rules for the resources of a job; the first that fits is used."""
    serve: Serve | None = None
    """How the cluster serves a teacher for `teacher.path=slurm`; null: it serves none."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More options of sbatch for every job, by their long names: `{reservation: course, licenses: "matlab:1"}`; true
    stands for an option without a value, e.g. `exclusive: true`. Those the harness sets itself are refused."""

    def __post_init__(self) -> None:
        check_name("slurm.name", self.name)
        for name in ("partition", "account", "qos", "constraint", "exclude"):
            check_word(f"slurm.{name}", getattr(self, name))
        check_extra("slurm.extra", self.extra)
        for place, line in enumerate(self.setup):
            if "\n" in line or "\0" in line:
                raise refuse(f"slurm.setup[{place}]", line, "it is one line of shell", "give each line an entry")
        check_positive("slurm.throttle", self.throttle)
        check_at_least("slurm.restarts", self.restarts, 0)
        check_positive("slurm.notice_seconds", self.notice_seconds)
        check_at_least("slurm.pack_minutes", self.pack_minutes, 0)
        check_at_least("slurm.gpu_hours", self.gpu_hours, 0)
        check_positive("slurm.gpu_memory_gb", 1 if self.gpu_memory_gb is None else self.gpu_memory_gb)
        if not self.resources:
            raise refuse("slurm.resources", [], "a job needs a rule for its resources", "give at least one")
        rules = {_place(place, self.resources): rule for place, rule in enumerate(self.resources)}
        if self.serve is not None:
            rules["slurm.serve.resources"] = self.serve.resources
        for where, rule in rules.items():
            if self.notice_seconds >= 60 * rule.minutes:
                why = f"the notice comes before the time limit, and {where}.minutes is {rule.minutes}"
                raise refuse("slurm.notice_seconds", self.notice_seconds, why, "make it shorter, or the limit longer")

    @classmethod
    def of(cls, settings: Any) -> "Cluster":
        """The cluster of plain settings. Raises SettingsError for bad values, and for unknown names."""
        if not isinstance(settings, Mapping) or "name" not in settings:
            way_out = "name a file of slurm/ before its settings are set, e.g. slurm=dev"
            raise refuse("slurm", settings, "no cluster is chosen", way_out)
        check_known("slurm", settings, cls)
        check_types("slurm", settings, cls)
        settings = {**settings, "extra": dict(settings.get("extra") or {})}
        if settings.get("serve") is not None:
            settings = {**settings, "serve": Serve.of(settings["serve"])}
        if "resources" not in settings:
            return cls(**settings)
        rules = settings["resources"]
        if rules is not None and not isinstance(rules, list | tuple):
            raise refuse("slurm.resources", rules, "it is a list of rules", "write e.g. [{cpus: 4, memory_gb: 16}]")
        # an empty list, or null, is refused with a sentence in `__post_init__`
        made = tuple(Resources.of(_place(place, rules or ()), rule) for place, rule in enumerate(rules or ()))
        return cls(**{**settings, "resources": made})

    def resources_for(self, kind: str, name: str, parameters: float) -> Resources:
        """Resources of a stage's job. Raises SettingsError where no rule fits."""
        for rule in self.resources:
            if rule.fits(kind, name, parameters):
                return rule
        raise refuse(
            "slurm.resources",
            f"{kind}, {parameters:.3g} parameters",
            f"no rule of slurm/{self.name}.yaml fits such a stage",
            "add one without `parameters` at the end",
        )


def _place(place: int, rules: Sequence[Any]) -> str:
    """How messages name a rule; the only one needs no number."""
    return "slurm.resources" if len(rules) == 1 else f"slurm.resources.{place}"


DEFAULTS = {one.name: one.default for one in fields(Cluster) if one.default is not MISSING}
"""Defaults of what a cluster's file may leave out."""
