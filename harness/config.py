"""Settings: what a person may ask of a cell and of a run, with the checks that need no data.

Defaults live here; `conf/` holds presets and the command line overrides both. Bad input raises
`SettingsError` (`checks.py`): one sentence that names the field, the value, what is allowed and what to do.

    budget = Budget(kind="steps", amount=300)
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from harness.checks import check_at_least, check_choice, check_fraction, check_positive, refuse
from harness.machine import Launch, Machine
from harness.scoring import Evals
from harness.signal_kinds import Signal

BUDGET_KINDS = ("epochs", "steps", "trained_tokens", "flops")
QUANTISATIONS = ("int8", "nf4")
FORMATS = ("fp32", "bf16", *QUANTISATIONS)
MODEL_KINDS = ("none", "mini", "hf", "gguf", "http")
INITS = ("pretrained", "random", "pruned")
TRACKS = ("none", "wandb", "wandb_online")
FAMILIES = ("words", "letters")
MINI_SIZES = ("tiny", "small", "large")


@dataclass
class Model:
    """A model to start from: a mini built here, a Hugging Face folder or hub id, a GGUF file, or a server."""

    name: str = MISSING
    """Readable name, used in tables and addresses; not part of identity."""
    kind: str = "mini"
    """`mini` (built and pre-trained here), `hf` (folder or hub id), `gguf` (one file), `http` (a teacher
    behind an OpenAI-compatible completions server), `none`."""
    path: str | None = None
    """Folder or hub id (`hf`), file (`gguf`), or the server's address (`http`: http://host:port, `$NAME` of a
    variable that holds it, or `slurm`: the cluster serves it; never identity); null for `mini`."""
    revision: str | None = None
    """Hub revision (`http`: of what is served, and of a tokenizer from the hub); null means: resolve at
    first use and record what was found."""
    served_model: str | None = None
    """`http` only: the name the server gives the model."""
    tokenizer: str | None = None
    """`http` only: folder or hub id of the served model's tokenizer."""
    api_key_env: str | None = None
    """`http` only: name of the environment variable that holds the key; never the key itself."""
    size: str = "small"
    """Mini only: `tiny`, `small` or `large` (0.16, 0.36 and 0.8 million parameters)."""
    family: str = "words"
    """Mini only: whose tokens and chat template it has, `words` (whole words of the world's phrasings) or `letters`
    (single characters, other marks); models of two families share no token ids (harness/world/tokenizer.py)."""
    init: str = "pretrained"
    """`pretrained`, `random` (same shape, fresh weights) or `pruned` (evenly spaced layers kept)."""
    layers: int | None = None
    """Layers kept when `init=pruned`."""
    init_seed: int | None = None
    """Seed of fresh weights (mini, `init=random`); null: the teacher's seed for a teacher, else the world's."""
    knows: str = "half"
    """Mini only: the share of the world's facts met in pre-training, `half` or `all` (scarce domain too)."""
    chat_template: str = "own"
    """`own` (the tokenizer's) or `tulu` (the Tülu 3 template, set on the tokenizer)."""
    license: str | None = None
    """Licence of the weights as their publisher states it; null where nobody here has read it."""

    def __post_init__(self) -> None:
        check_choice(f"{self.name}.kind", self.kind, MODEL_KINDS)
        check_choice(f"{self.name}.init", self.init, INITS)
        check_choice(f"{self.name}.family", self.family, FAMILIES)
        check_choice(f"{self.name}.chat_template", self.chat_template, ("own", "tulu"))
        if self.kind == "mini":
            check_choice(f"{self.name}.size", self.size, MINI_SIZES)
        if self.kind in ("hf", "gguf") and not self.path:
            need = f"kind={self.kind} needs a path"
            raise refuse(f"{self.name}.path", self.path, need, "give a folder, file or hub id")
        if not re.fullmatch("[A-Z][A-Z0-9_]*", self.api_key_env or "NONE"):
            way_out = "name the environment variable that holds the key, in capitals, e.g. VLLM_API_KEY"
            raise refuse(f"{self.name}.api_key_env", "(not shown)", "it is no name of a variable", way_out)
        if self.kind == "mini" and self.chat_template != "own":
            raise refuse(f"{self.name}.chat_template", self.chat_template, "a mini has its own template and no other")
        if self.kind != "mini" and self.family != "words":
            raise refuse(f"{self.name}.family", self.family, "only minis come in families", "leave it to its default")
        if self.init == "pruned" and not self.layers:
            raise refuse(f"{self.name}.layers", self.layers, "init=pruned needs the number of layers to keep")


@dataclass
class Budget:
    """How much training every arm gets. Named on every figure; part of identity."""

    kind: str = "steps"
    """`epochs` over the cell's rows, optimizer `steps`, `trained_tokens` (response tokens scored), or `flops`: the
    marginal cost, with the teacher's share, so that an arm with a teacher takes fewer steps."""
    amount: float = 300
    """Number of epochs, steps, tokens or FLOPs."""
    batch_size: int = 32
    """Rows per optimizer step over all processes (the effective batch)."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_ratio: float = 0.05
    """Share of a train stage's steps spent warming the learning rate up."""
    schedule: str = "cosine"
    """Decay after warm-up: `cosine` (to 5 % of the peak), `linear` (to 0) or `constant`."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    beta2: float = 0.98
    """AdamW second-moment decay."""
    max_grad_norm: float = 1.0
    """Global gradient clipping norm."""
    precision: str = "fp32"
    """`fp32`, or `bf16` activations by autocast; weights and optimizer stay fp32: pure bf16 loses small updates."""

    def __post_init__(self) -> None:
        check_choice("budget.kind", self.kind, BUDGET_KINDS)
        check_choice("budget.schedule", self.schedule, ("cosine", "linear", "constant"))
        check_choice("budget.precision", self.precision, ("fp32", "bf16"))
        for name in ("amount", "batch_size", "learning_rate", "max_grad_norm"):
            check_positive(f"budget.{name}", getattr(self, name))
        check_at_least("budget.weight_decay", self.weight_decay, 0)
        for name in ("warmup_ratio", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise refuse(f"budget.{name}", getattr(self, name), "it lies between 0 and below 1")

    @property
    def label(self) -> str:
        """How a figure names this budget, e.g. `300 steps x 32 rows`."""
        return f"{self.amount:g} {self.kind.replace('_', ' ')} x {self.batch_size} rows"


@dataclass
class Lesson:
    """One thing a teacher is trained on before it teaches."""

    corpus: Any = None
    """A corpus, or null for the cell's own."""
    budget: Budget = field(default_factory=Budget)
    """Training budget of this lesson."""
    loss_on: str = "assistant"
    """`assistant` turns, or `all` tokens (a teacher that must also write prompts)."""

    def __post_init__(self) -> None:
        check_choice("teacher.lessons.loss_on", self.loss_on, ("assistant", "all"))


@dataclass
class Student(Model):
    """The model that is trained; every arm starts from the same one."""

    lora_rank: int | None = None
    """Rank of the low-rank adapters trained in place of its weights (arXiv 2106.09685); null: all weights."""
    lora_alpha: float | None = None
    """Adapters are scaled by this over their rank; null: twice the rank."""
    lora_dropout: float = 0.0
    """Dropout on what each adapter reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("student.lora_rank", self.lora_rank, 1)
        check_positive("student.lora_alpha", 1 if self.lora_alpha is None else self.lora_alpha)
        if not 0 <= self.lora_dropout < 1:
            raise refuse("student.lora_dropout", self.lora_dropout, "it lies between 0 and below 1")
        if self.lora_rank is None and (self.lora_alpha, self.lora_dropout) != (None, 0):
            raise refuse("student.lora_rank", None, "lora_alpha and lora_dropout need it", "try student.lora_rank=8")


@dataclass
class Teacher(Model):
    """A model that teaches: adopted as it is (no lessons), or trained first."""

    lessons: list[Lesson] = field(default_factory=list)
    """Trained in order; empty: the model teaches as it was adopted."""
    data_frac: Any = 1.0
    """Fraction of the cell's corpus that a lesson on it sees, or `match`: the cell's own rows."""
    label_rows: str = "blocks"
    """Rows it answers for `seq_kd`: `blocks` (all of the fraction, in blocks that every other fraction, budget
    and student reuses) or `visited` (what the cell's budget visits; cheaper far below one epoch)."""
    quantise: str | None = None
    """Weights it teaches and is scored with, rounded after its lessons: `int8` (LLM.int8, arXiv 2208.07339) or
    `nf4` (4 bits, arXiv 2305.14314); null: as they are."""
    distillation_allowed: str = "unknown"
    """Whether its licence lets others be trained on what it says: `yes`, `no` (the run is refused) or `unknown`, where
    nobody here has read it (said in the receipt)."""
    acknowledge_license: bool = False
    """Train on it although `distillation_allowed=no`: you have its owner's leave. Said in the receipt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        said = str(self.distillation_allowed).lower()
        self.distillation_allowed = {"true": "yes", "false": "no"}.get(said, said)  # YAML reads a bare `no` as false
        check_choice("teacher.distillation_allowed", self.distillation_allowed, ("yes", "no", "unknown"))
        if self.quantise is not None:
            check_choice("teacher.quantise", self.quantise, QUANTISATIONS)
        check_choice("teacher.label_rows", self.label_rows, ("blocks", "visited"))
        if self.data_frac != "match":
            check_fraction("teacher.data_frac", self.data_frac)


@dataclass
class Measure:
    """What the models of a cell take to run; never identity."""

    formats: list[str] = field(default_factory=lambda: ["fp32"])
    """Number formats in which size, memory and speed of student and teacher are measured: `fp32`, `bf16`, `int8`,
    `nf4`; the last two are scored too. Empty: none."""

    def __post_init__(self) -> None:
        for name in self.formats:
            check_choice("measure.formats", name, FORMATS)


@dataclass
class Cell:
    """One point of the grid."""

    student: Student = field(default_factory=Student)
    """The model that is trained."""
    teacher: Teacher = field(default_factory=Teacher)
    """The model that teaches; identity only where the method uses it."""
    signal: Signal = field(default_factory=Signal)
    """How much of the teacher's distributions is at hand where a method compares them."""
    method: Any = MISSING
    """A recipe from `harness/methods/`."""
    corpus: Any = MISSING
    """A corpus from `harness/corpora/`."""
    data_frac: float = 1.0
    """Fraction of the corpus, per source, in (0, 1]; fractions are nested."""
    budget: Budget = field(default_factory=Budget)
    """Training budget, the same for every arm."""
    evals: Evals = field(default_factory=Evals)
    """What every model is scored on."""
    measure: Measure = field(default_factory=Measure)
    """What the models take to run; it changes no score and is no identity."""
    seed: int = 0
    """Sets `data_seed` and `train_seed`."""
    world_seed: int = 0
    """Draw of the miniature's world (facts, labels, noise)."""
    teacher_seed: int = 0
    """Draw of the teacher (its initial weights and data order)."""
    data_seed: int | None = None
    """Which rows a fraction holds and which are carved for validation; null: `seed`."""
    train_seed: int | None = None
    """Order of rows and every draw made while training; null: `seed`."""

    def __post_init__(self) -> None:
        check_fraction("data_frac", self.data_frac)

    def with_seeds(self) -> "Cell":
        """The cell with every seed that was left to another one filled in."""
        student, teacher = self.student, self.teacher
        if student.init_seed is None:
            student = replace(student, init_seed=self.world_seed)
        if teacher.init_seed is None:
            teacher = replace(teacher, init_seed=self.teacher_seed)
        data_seed, train_seed = (self.seed if seed is None else seed for seed in (self.data_seed, self.train_seed))
        return replace(self, student=student, teacher=teacher, data_seed=data_seed, train_seed=train_seed)


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
    """Where a stage runs."""
    track: str = "none"
    """Beside our own files: `wandb` leaves curves and tables as Weights & Biases runs in `<store>/wandb`, which
    `wandb sync` sends later; `wandb_online` sends them at once. Or `none`."""
    slurm: Any = None
    """A cluster, a file of `slurm/`: the grid is submitted there and the command returns (harness/cluster.py)."""
    wait: bool = False
    """With `slurm`: stay, and show the table when all jobs have ended."""
    retry: bool = False
    """Run failed stages again."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """A grid written in a file: `product`, `zip`, `include`, `exclude`."""
    draws: int | None = None
    """Draws of world and teacher: the whole grid with `world_seed` and `teacher_seed` 0, 1, ...; null: as they say."""
    claims: list[Any] = field(default_factory=list)
    """What the grid is to show, written down and hashed before its first cell (harness/claims.py)."""
    scale: str = "mini"
    """Of an experiment: `mini` (the miniature) or `paper` (its file in experiments/paper: real models, a cluster)."""
    tune: dict[str, Any] = field(default_factory=dict)
    """What is tried for every arm before the grid runs: `seeds`, `rounds`, `axes`, `arms` (harness/tuning.py)."""
    experiments: Any = None
    """The experiment's slug when one was chosen (set by its file)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("track", self.track, TRACKS)
