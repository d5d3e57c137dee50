"""Cluster: how jobs are submitted to one Slurm cluster, from one YAML file in `slurm/`; never identity.

cluster = Cluster.of({"name": "dev", "resources": [{"minutes": 10, "cpus": 1, "memory_gb": 2}]})
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from harness.config.checks import check_at_least, check_known, check_no_secret, check_positive, refuse

READ_BYTES_PER_SECOND = 1e9
"""Speed at which bf16 weights are read from a shared file system, for the estimate of a plan."""


@dataclass(frozen=True)
class Resources:
    """Resources of a job, by its kind of stage and the largest model in it."""

    kinds: Sequence[str] = ()
    """Kinds of stages the rule is for (mixture, base, train, labels, cache, synthesize, quantise, evaluate, measure,
    overlap); none: all."""
    names: Sequence[str] = ()
    """Patterns of the names in addresses, to select single cells, e.g. `on_policy-*` or `kd-1-s0`; none: all."""
    parameters: float | None = None
    """The rule is for models of at most this many parameters; null: of any size."""
    minutes: int = 60
    """Time limit. A stage that needs longer stops with a checkpoint and is queued again."""
    cpus: int = 4
    """CPU cores per process."""
    memory_gb: float = 16
    """Memory per node, in GB."""
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

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "memory_gb", "nodes", "teraflops"):
            check_positive(f"slurm.resources.{name}", getattr(self, name))
        check_at_least("slurm.resources.gpus", self.gpus, 0)
        check_at_least("slurm.resources.processes", self.processes, 1)

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
        way_out = "export a variable that the server reads, such as VLLM_API_KEY, before submitting"
        check_no_secret("slurm.serve.command", self.command, way_out)
        if "{port}" not in self.command:
            raise refuse(
                "slurm.serve.command", self.command, "the command needs {port}, where the server listens", "add {port}"
            )
        if self.resources.nodes != 1:
            raise refuse("slurm.serve.resources.nodes", self.resources.nodes, "a server runs on one node")
        check_positive("slurm.serve.ready_minutes", self.ready_minutes)
        check_positive("slurm.serve.look_seconds", self.look_seconds)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Serve":
        """From plain settings. Raises SettingsError for bad values, and for unknown names with the real ones."""
        check_known("slurm.serve", settings, cls)
        if not settings.get("command"):
            missing = "the command that starts the server is missing"
            raise refuse("slurm.serve.command", None, missing, "see slurm/example_a100.yaml")
        rule = settings.get("resources") or {}
        check_known("slurm.serve.resources", rule, Resources)
        # these choose the jobs a rule is for; here they would be ignored
        chosen = [name for name in ("kinds", "names", "parameters") if rule.get(name)]
        if chosen:
            raise refuse(
                f"slurm.serve.resources.{chosen[0]}",
                rule[chosen[0]],
                "these resources are for every server, so this setting selects nothing",
                "leave it out",
            )
        return cls(**{**settings, "resources": Resources(**{**rule, "kinds": (), "names": (), "processes": 1})})

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

    def __post_init__(self) -> None:
        for name, text in (("setup", "\n".join(map(str, self.setup))), ("python", self.python)):
            way_out = "read it from a file of yours there: `export NAME=$(cat FILE)`"
            check_no_secret(f"slurm.{name}", text, way_out)
        check_positive("slurm.throttle", self.throttle)
        check_at_least("slurm.restarts", self.restarts, 0)
        check_positive("slurm.notice_seconds", self.notice_seconds)
        check_at_least("slurm.pack_minutes", self.pack_minutes, 0)
        check_at_least("slurm.gpu_hours", self.gpu_hours, 0)
        check_positive("slurm.gpu_memory_gb", 1 if self.gpu_memory_gb is None else self.gpu_memory_gb)
        if not self.resources:
            raise refuse("slurm.resources", [], "a job needs a rule for its resources", "give at least one")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Cluster":
        """The cluster of plain settings. Raises SettingsError for bad values, and for unknown names."""
        check_known("slurm", settings, cls)
        if settings.get("serve") is not None:
            settings = {**settings, "serve": Serve.of(settings["serve"])}
        if "resources" not in settings:
            return cls(**settings)
        for rule in settings["resources"] or ():
            check_known("slurm.resources", rule, Resources)
        # an empty list, or null, is refused with a sentence in `__post_init__`
        rules = tuple(
            Resources(**{**rule, "kinds": tuple(rule.get("kinds") or ()), "names": tuple(rule.get("names") or ())})
            for rule in settings["resources"] or ()
        )
        return cls(**{**settings, "resources": rules})

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


DEFAULTS = {one.name: one.default for one in fields(Cluster) if one.default is not MISSING}
"""Defaults of what a cluster's file may leave out."""
