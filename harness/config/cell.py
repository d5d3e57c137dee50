"""Settings of a cell and of a run, with the checks that need no data.

Defaults live in the dataclasses of this package; `conf/` holds presets and the command line overrides both. Bad input
raises `SettingsError` (`checks.py`): one sentence that names the field, the value, what is allowed and what to do.

    cell = Cell(method=load_method("sft")(), corpus=load_corpus("mini")(), data_frac=0.1).with_seeds()
"""

from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from harness.config.budget import Budget
from harness.config.checks import (
    check_at_least,
    check_choice,
    check_folder_name,
    check_fraction,
    check_name,
    check_seed,
)
from harness.config.evaluation import Evals, Measure
from harness.config.machine import Launch, Machine
from harness.config.model import Student, Teacher
from harness.config.teacher_signal import Signal

TRACKS = ("none", "wandb", "wandb_online")
SEEDS = ("seed", "world_seed", "teacher_seed", "data_seed", "train_seed")


@dataclass
class Cell:
    """One point of the grid."""

    student: Student = field(default_factory=Student)
    """The model that is trained."""
    teacher: Teacher = field(default_factory=Teacher)
    """The teacher model; identity only where the method uses it."""
    signal: Signal = field(default_factory=Signal)
    """Where the teacher's logits come from, and how many are kept, for methods that compare distributions."""
    method: Any = MISSING
    """A recipe from `harness/methods/`."""
    corpus: Any = MISSING
    """A corpus from `harness/data/corpora/`."""
    data_frac: float = 1.0
    """Fraction of the corpus, per source, in (0, 1]; fractions are nested."""
    budget: Budget = field(default_factory=Budget)
    """Training budget, the same for every arm."""
    evals: Evals = field(default_factory=Evals)
    """What every model is scored on."""
    measure: Measure = field(default_factory=Measure)
    """Deployment costs to measure; they change no score and are no identity."""
    seed: int = 0
    """Sets `data_seed` and `train_seed`."""
    world_seed: int = 0
    """Seed of the miniature corpus (facts, labels, noise)."""
    teacher_seed: int = 0
    """Seed of the teacher (its initial weights and data order)."""
    data_seed: int | None = None
    """Seed of the rows of a fraction and of its validation rows; null: `seed`."""
    train_seed: int | None = None
    """Seed of the order of rows and of every draw while training; null: `seed`."""

    def __post_init__(self) -> None:
        check_fraction("data_frac", self.data_frac)
        for name in SEEDS:
            check_seed(name, getattr(self, name))

    def with_seeds(self) -> "Cell":
        """The cell with every seed that was left to another one filled in."""
        student, teacher = self.student, self.teacher
        if student.init_seed is None:
            student = replace(student, init_seed=self.world_seed)
        if teacher.several:
            teacher = _with_seeds(teacher, self.teacher_seed)
        if teacher.init_seed is None:
            teacher = replace(teacher, init_seed=self.teacher_seed)
        data_seed, train_seed = (self.seed if seed is None else seed for seed in (self.data_seed, self.train_seed))
        return replace(self, student=student, teacher=teacher, data_seed=data_seed, train_seed=train_seed)

    def with_each_teacher(self) -> tuple["Cell", ...]:
        """The cell once for each of its teachers: itself, or with each member of `teacher=several` in its place."""
        if not self.teacher.several:
            return (self,)
        return tuple(replace(self, teacher=one.teacher) for one in self.teacher.members)


def _with_seeds(teacher: Teacher, seed: int) -> Teacher:
    """A teacher of several with its members' seeds filled in; of one member for all rows, that member itself."""
    members = [
        one if one.teacher.init_seed is not None else replace(one, teacher=replace(one.teacher, init_seed=seed))
        for one in teacher.members
    ]
    # the same teacher has the same addresses, whether it is named alone or as the only member
    if len(members) == 1 and members[0].sources is None and members[0].share in (None, 1):
        return members[0].teacher
    return replace(teacher, members=members)


@dataclass
class Settings(Cell):
    """A cell and how to run it; the root of `conf/config.yaml`."""

    grid: str | None = None
    """Name of the grid; null: the experiment's slug, else a short hash of its cells."""
    store: str = "outputs"
    """Folder of artifacts, records and results."""
    launch: Launch = field(default_factory=Launch)
    """How stages are executed."""
    machine: Machine = field(default_factory=Machine)
    """Device, threads and memory limits of a stage."""
    track: str = "none"
    """`wandb` also writes curves and tables as Weights & Biases runs to `<store>/wandb`, which `wandb sync` uploads
    later; `wandb_online` uploads them at once; `none`: no runs."""
    slurm: Any = None
    """A cluster, a file of `slurm/`: the grid is submitted there and the command returns (config/cluster.py)."""
    wait: bool = False
    """With `slurm`: wait until all jobs have ended, then show the table."""
    retry: bool = False
    """Run failed stages again, and make again what was damaged and is in the store's `quarantine/`."""
    verify: str = "full"
    """How a stage's inputs are verified before it uses them: `full` compares size and content (sha256, once per process
    and file) with what was published, `size` the size alone, where reading every file once more takes too long."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """A grid written in a file: `product`, `zip`, `include`, `exclude`."""
    most_cells: int = 20000
    """A grid of more cells is refused; raise it where so many are meant."""
    draws: int | None = None
    """Replicates, each with its own miniature corpus and teacher: the whole grid is run with `world_seed` and
    `teacher_seed` 0, 1, ...; null: the two seeds stay as they are set."""
    first_draw: int = 0
    """The seed of the first of `draws` replicates. A replication takes replicates that the first run did not have:
    `draws=5 first_draw=5` after `draws=5`; the same seeds again would repeat its rounding only."""
    claims: list[Any] = field(default_factory=list)
    """Claims that the grid tests, hashed before its first cell runs (harness/results/findings.py)."""
    primary_metric: str | None = None
    """Metric on which claims, verdict, decision and crossover rest, e.g. `macro_average.rescaled`, `bbh` or
    `heldout.nll`; it changes no artifact. Null: the default, which `grid plan` prints (harness/plan/metrics.py)."""
    scale: str = "mini"
    """Scale of an experiment: `mini` (the miniature), `paper` (real models on a cluster: its file in
    experiments/paper) or `rehearsal` (the same file with stand-ins of random weights, in minutes on a CPU: it shows
    that the grid runs, and its numbers mean nothing)."""
    tune: dict[str, Any] = field(default_factory=dict)
    """Tuning of every arm before the grid runs: `seeds`, `rounds`, `axes`, `arms` (harness/plan/tuning.py)."""
    experiments: Any = None
    """The slug of the chosen experiment (set by its file)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("grid", self.grid)
        check_folder_name("store", self.store)
        check_choice("track", self.track, TRACKS)
        check_choice("verify", self.verify, ("full", "size"))
        check_at_least("most_cells", self.most_cells, 1)
