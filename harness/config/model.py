"""Models: the student that is trained, its teacher, and where their weights come from, as a person sets them.

One flat schema serves every kind of model, so that the command line can change `kind` and `path` of any preset; the
typed model with the fields of its kind alone is `models/kinds.py`.

student = Student(name="mini", size="tiny")
"""

import re
from collections.abc import Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from harness.config.budget import Budget
from harness.config.checks import (
    check_at_least,
    check_choice,
    check_date,
    check_fraction,
    check_name,
    check_positive,
    check_seed,
    is_number,
    refuse,
)

QUANTISATIONS = ("int8", "nf4")
MODEL_KINDS = ("none", "mini", "hf", "gguf", "http", "several")
COMBINE = ("by_row", "mean")
INITS = ("pretrained", "random", "pruned")
FAMILIES = ("words", "letters")
MINI_SIZES = ("tiny", "small", "large")
NOT_READ = {
    "mini": ("path", "revision", "served_model", "tokenizer", "api_key_env"),
    "none": ("path", "revision", "served_model", "tokenizer", "api_key_env"),
    "hf": ("served_model", "tokenizer", "api_key_env"),
    "gguf": ("served_model", "tokenizer", "api_key_env"),
}
"""By kind, the fields that only models of other kinds have; one that is set would be ignored."""


@dataclass
class Model:
    """A model to start from: one of the miniature, a Hugging Face folder or hub id, a GGUF file, or a served model."""

    name: str = MISSING
    """Readable name, used in tables and addresses; not part of identity."""
    kind: str = "mini"
    """`mini` (built and pre-trained here), `hf` (folder or hub id), `gguf` (one file), `http` (a teacher
    served over HTTP by an OpenAI-compatible completions server), `several` (a teacher of `members`), `none`."""
    path: str | None = None
    """Folder or hub id (`hf`), file (`gguf`), or the server's address (`http`: http://host:port, `$NAME` of a
    variable that holds it, or `slurm`: the cluster serves it; never identity); null for `mini`."""
    revision: str | None = None
    """Hub revision (`http`: of the served model, and of a tokenizer from the hub); null: it is resolved at first use
    and recorded."""
    served_model: str | None = None
    """`http` only: the name by which the server knows the model."""
    tokenizer: str | None = None
    """`http` only: folder or hub id of the served model's tokenizer."""
    api_key_env: str | None = None
    """`http` only: name of the environment variable that holds the server's API key; the key itself is no setting."""
    connect_timeout_s: float = 10.0
    """`http` only: seconds within which the server has to accept a connection; never identity."""
    read_timeout_s: float = 600.0
    """`http` only: seconds within which a whole answer has to be there. Raise it for long answers of a slow server,
    lower it to notice sooner that one hangs; never identity."""
    size: str = "small"
    """`mini` only: `tiny`, `small` or `large` (0.16, 0.36 and 0.8 million parameters)."""
    family: str = "words"
    """`mini` only: the model family, which sets tokenizer and chat template: `words` (tokens are whole words of the
    miniature corpus) or `letters` (the second model family: tokens are single characters, with other marks); models of
    two families share no token ids (data/miniature/tokenizer.py)."""
    init: str = "pretrained"
    """`pretrained`, `random` (same shape, fresh weights) or `pruned` (evenly spaced layers kept)."""
    layers: int | None = None
    """Layers kept when `init=pruned`."""
    init_seed: int | None = None
    """Seed of fresh weights (`mini`, `init=random`); null: `teacher_seed` for a teacher, else `world_seed`."""
    knows: str = "half"
    """`mini` only: the share of the miniature corpus's facts in its pre-training, `half` or `all` (also those of the
    scarce domain)."""
    chat_template: str = "own"
    """`own` (the tokenizer's), `tulu` (the Tülu 3 template, set on the tokenizer) or `trl` (the training template that
    TRL has for the tokenizer's own, which renders earlier turns as they were when they were last)."""
    thinking: bool | None = None
    """Thinking on or off in every prompt, where the chat template has a switch for it (Qwen 3, SmolLM3); null: the
    template's own default."""
    template_date: str | None = None
    """Date that the chat template prints (YYYY-MM-DD), where it prints one (Llama 3); null: 2024-07-26 in a template
    that would print today's date, and a template's own date otherwise."""
    license: str | None = None
    """Licence of the weights as their publisher states it; null where it is unknown."""

    @property
    def setting(self) -> str:
        """Where a person sets this model: a refusal names `student.path`, since the name of a preset is no setting."""
        return self.name

    def __post_init__(self) -> None:
        check_choice(f"{self.setting}.kind", self.kind, MODEL_KINDS)
        if self.kind != "several" and self.name != MISSING:  # several are named after their members
            check_name(f"{self.setting}.name", self.name)
        check_seed(f"{self.setting}.init_seed", self.init_seed)
        for name in NOT_READ.get(self.kind, ()):
            if getattr(self, name) is not None:
                # an address may hold a password, and a key may stand where its variable's name belongs
                value = getattr(self, name)
                shown = "(not shown)" if name == "api_key_env" or "://" in str(value) else value
                way_out = f"choose a kind that has one, e.g. {self.setting}=hf, or leave it out"
                raise refuse(f"{self.setting}.{name}", shown, f"a model of kind={self.kind} has no {name}", way_out)
        check_choice(f"{self.setting}.init", self.init, INITS)
        check_choice(f"{self.setting}.family", self.family, FAMILIES)
        check_choice(f"{self.setting}.chat_template", self.chat_template, ("own", "tulu", "trl"))
        if self.kind == "mini":
            check_choice(f"{self.setting}.size", self.size, MINI_SIZES)
        check_positive(f"{self.setting}.connect_timeout_s", self.connect_timeout_s)
        check_positive(f"{self.setting}.read_timeout_s", self.read_timeout_s)
        if self.kind in ("hf", "gguf") and not self.path:
            need = f"kind={self.kind} needs a path"
            raise refuse(f"{self.setting}.path", self.path, need, "give a folder, file or hub id")
        if not re.fullmatch("[A-Z][A-Z0-9_]*", self.api_key_env or "NONE"):
            way_out = "name the environment variable that holds the key, in capitals, e.g. VLLM_API_KEY"
            need = "it must be the name of an environment variable"
            raise refuse(f"{self.setting}.api_key_env", "(not shown)", need, way_out)
        if self.kind == "mini" and self.chat_template != "own":
            raise refuse(
                f"{self.setting}.chat_template",
                self.chat_template,
                "a model of the miniature has its own template",
                f"leave {self.setting}.chat_template=own",
            )
        for name in ("thinking", "template_date"):
            if self.kind in ("mini", "none") and getattr(self, name) is not None:
                reason = f"a model of kind={self.kind} has no chat template that reads it"
                raise refuse(f"{self.setting}.{name}", getattr(self, name), reason, f"leave {self.setting}.{name}=null")
        if self.template_date is not None:
            check_date(f"{self.setting}.template_date", self.template_date)
        if self.kind != "mini" and self.family != "words":
            raise refuse(
                f"{self.setting}.family",
                self.family,
                "only models of kind=mini have a family",
                "leave it to its default",
            )
        if self.init == "pruned" and not self.layers:
            way_out = f"set {self.setting}.layers to the number of layers to keep"
            raise refuse(f"{self.setting}.layers", self.layers, "it must be at least 2 with init=pruned", way_out)


@dataclass
class Lesson:
    """One fine-tuning of a teacher, before it is used as a teacher."""

    corpus: Any = None
    """Corpus of this fine-tuning; null: the cell's own."""
    budget: Budget = field(default_factory=Budget)
    """Training budget of this fine-tuning."""
    loss_on: str = "assistant"
    """Tokens that are scored: `assistant` turns, or `all` (for a teacher that must also generate prompts)."""

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
    """Dropout on the inputs of each adapter, 0 to below 1."""

    @property
    def setting(self) -> str:
        return "student"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "several":
            raise refuse("student.kind", "several", "only a teacher has members", "choose one model as the student")
        check_at_least("student.lora_rank", self.lora_rank, 1)
        check_positive("student.lora_alpha", 1 if self.lora_alpha is None else self.lora_alpha)
        if not (is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1):
            raise refuse("student.lora_dropout", self.lora_dropout, "it must be at least 0 and below 1")
        if self.lora_rank is None and (self.lora_alpha, self.lora_dropout) != (None, 0):
            raise refuse("student.lora_rank", None, "lora_alpha and lora_dropout need it", "try student.lora_rank=8")


@dataclass
class Teacher(Model):
    """The teacher: a pretrained model as it is, or fine-tuned here first."""

    lessons: list[Lesson] = field(default_factory=list)
    """Teacher fine-tuning, in this order; empty: the pretrained base model is the teacher."""
    data_frac: Any = 1.0
    """Fraction of the cell's corpus that the teacher is fine-tuned on, or `match`: the rows of the cell itself."""
    label_rows: str = "blocks"
    """Rows it answers for `seq_kd` and `logit_kd answers=teacher`: `blocks` (all of the fraction, in blocks that
    every other fraction, budget and student reuses) or `visited` (only rows that the cell's budget visits; cheaper far
    below one epoch)."""
    rendering: str = "own"
    """What it reads where its chat template is not the student's: `own` (the same conversation in its own template and
    system prompt) or `student` (the student's rendering); each side's end-of-turn token stands for the other's."""
    quantise: str | None = None
    """Number format its weights are rounded to after its fine-tuning, before it teaches and is scored: `int8`
    (LLM.int8, arXiv 2208.07339) or `nf4` (4 bits, arXiv 2305.14314); null: they are not rounded."""
    distillation_allowed: str = "unknown"
    """Whether its licence allows training other models on its outputs: `yes`, `no` (the run is refused) or `unknown`
    (the receipt reports it)."""
    acknowledge_license: bool = False
    """Train on its outputs although `distillation_allowed=no`, with the owner's permission; the receipt reports it."""
    members: list[Any] = field(default_factory=list)
    """Of `kind=several`, its teachers: each entry names a `preset` of conf/teacher, may set that teacher's fields
    (`path`, `quantise`, ...), and has a `share` (of the rows, or the weight in the mean; equal where none is set) or
    `sources`, whose rows it teaches: `[{preset: weak, share: 0.4}, {preset: strong, share: 0.6}]`."""
    combine: str = "by_row"
    """Of `kind=several`: `by_row` (each row has one teacher: the first member whose `sources` has the row's source,
    else a member without `sources`, drawn by share from the row's id) or `mean` (at each position the mean of the
    members' probabilities, weighted by share; Bucila et al. 2006)."""

    @property
    def setting(self) -> str:
        return "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("teacher.combine", self.combine, COMBINE)
        if self.kind == "several":
            self._check_several()
        elif self.members or self.combine != "by_row":
            name = "members" if self.members else "combine"
            raise refuse(
                f"teacher.{name}", getattr(self, name), "only teacher=several has members", "set teacher=several"
            )
        answer = str(self.distillation_allowed).lower()
        self.distillation_allowed = {"true": "yes", "false": "no"}.get(
            answer, answer
        )  # YAML reads a bare `no` as false
        check_choice("teacher.distillation_allowed", self.distillation_allowed, ("yes", "no", "unknown"))
        if self.quantise is not None:
            check_choice("teacher.quantise", self.quantise, QUANTISATIONS)
        check_choice("teacher.rendering", self.rendering, ("own", "student"))
        check_choice("teacher.label_rows", self.label_rows, ("blocks", "visited"))
        if self.data_frac != "match":
            check_fraction("teacher.data_frac", self.data_frac)

    @property
    def several(self) -> bool:
        """Whether it is a teacher of members."""
        return self.kind == "several"

    def _check_several(self) -> None:
        """Raise SettingsError for a field that the members have, each its own."""
        kept = ("name", "kind", "members", "combine", "init_seed")
        for one in fields(self):
            usual = one.default_factory() if one.default_factory is not NO_DEFAULT else one.default
            if one.name not in kept and getattr(self, one.name) != usual:
                way_out = f"set it in an entry of teacher.members, e.g. {{preset: weak, {one.name}: ...}}"
                raise refuse(f"teacher.{one.name}", getattr(self, one.name), "each member has its own", way_out)


@dataclass
class Member:
    """One of the teachers of `teacher=several`."""

    teacher: Teacher
    """The teacher itself: in an entry, a `preset` and those of its fields that differ from it."""
    share: float | None = None
    """Its share of the rows that no member's `sources` has, or its weight in the mean, above 0 and at most 1; null for
    all members: equal shares."""
    sources: list[str] | None = None
    """The corpus's sources whose rows it teaches; null: it takes its share of the others."""


def name_of_members(members: Sequence[Member], combine: str) -> str:
    """The name of a teacher of several, by its composition: `weak+strong`, `weak+strong[mean]`, `weak(arith)+strong`.

    Shares are named where they are not equal.
    """
    names = [one.teacher.name + (f"({','.join(one.sources)})" if one.sources else "") for one in members]
    shares = [one.share for one in members if not one.sources]
    told = ["mean"] * (combine == "mean")
    if len(set(shares)) > 1:
        told.append("/".join(f"{share or 0:g}" for share in shares))
    return "+".join(names) + (f"[{' '.join(told)}]" if told else "")
