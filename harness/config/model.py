"""Models: the student that is trained, the teacher that teaches, and where their weights come from.

student = Student(name="mini", size="tiny")
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from harness.config.budget import Budget
from harness.config.checks import check_at_least, check_choice, check_fraction, check_positive, refuse

QUANTISATIONS = ("int8", "nf4")
MODEL_KINDS = ("none", "mini", "hf", "gguf", "http")
INITS = ("pretrained", "random", "pruned")
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
    (single characters, other marks); models of two families share no token ids (data/miniature/tokenizer.py)."""
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
