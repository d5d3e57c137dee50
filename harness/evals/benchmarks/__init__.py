"""Public benchmarks, one a file; the file's `BENCHMARK` states everything that decides a score.

A benchmark names the task of lm-eval (EleutherAI) that runs it, and what is set differently here; all of this is its
identity. The file's name is the benchmark's name, which the user puts into `evals.names` beside the evaluations of
`evals/corpus/`. Nothing here imports lm-eval, so a grid is planned without it.

    load_benchmark("gsm8k").floor; print(load_benchmark("gsm8k").describe("gsm8k"))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.evaluation import Evals
from harness.config.file_hash import file_sha256
from harness.config.registry import load_from, names_in
from harness.store.fingerprint import fingerprint, plain

LM_EVAL = "0.4.13"
"""The version of lm-eval that the benchmarks are written for; scores under another version are not comparable."""
REAL, INVENTED = "run on real data", "plumbing tested on invented rows"
SUBSETS = "subsets"
TEST, TRAIN = "test", "train"
NOT_IDENTITY = frozenset(
    "title paper licence asks tested example deviation reads prepare grade floor cluster items split".split(),
)
"""Fields that change no score, and functions, whose changes `version` counts."""


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark and how it is run here."""

    title: str
    paper: str
    """Where it was published."""
    data: str
    """Hub id of its data."""
    licence: str
    """Licence of the data as its publisher states it; `not read here` where it was not looked up."""
    asks: str
    """The prompt's content and the answer it calls for, in a sentence."""
    tasks: str | None
    """lm-eval's task files under `lm_eval/tasks`, a glob; null: `changes` is the whole task."""
    metric: str
    """The column of lm-eval's samples that is the item's score."""
    floor: float
    """What guessing scores."""
    tested: str
    """REAL or INVENTED: the rows that this benchmark was tried on here."""
    example: tuple[str, str]
    """A prompt of the data (cut short) and its right answer."""
    shots: int = 0
    chat: bool = True
    """Whether prompts are chats in the model's own template; else plain text."""
    multiturn: bool = True
    """Whether the shots of a chat are turns of their own; else all is one user turn."""
    system: str | None = None
    """System prompt; null leaves it to the template."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the end of turn."""
    max_new_tokens: int | None = None
    """The longest answer in tokens; null where given choices are compared by likelihood and nothing is generated."""
    temperature: float = 0.0
    """Sampling temperature of the answers; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus of the sampled answers."""
    samples: int = 1
    """Answers drawn to each prompt."""
    filter: str = "none"
    """Name of the lm-eval filter that reads the answer."""
    items: int | None = None
    """How many items are scored, by the publication; for estimates before the data is read. Null: not known."""
    split: str = "test"
    """The split of its data that is scored, by the publication; `subsets`: each subset is a split of its own."""
    cluster: str | None = None
    """The field of a row that names its cluster: items of one passage or story are not independent."""
    runs_code: bool = False
    """Whether scoring runs code that the model wrote."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of lm-eval's task that are set differently here."""
    reads: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Functions that take the place of the task's own (`process_docs`, ...)."""
    prepare: Callable[[], Mapping[str, int]] | None = None
    """Called before the model is loaded with items: makes ready what grading needs; its counts are reported."""
    grade: Callable[[Mapping[str, Any], list[str]], float] | None = None
    """From an item's row and the sampled answers to its score; null: the task's own metric."""
    deviation: str = ""
    """Where this differs from the published way to run it."""
    version: int = 1
    """To be raised when the functions (`reads`, `grade`) give another number."""

    def __post_init__(self) -> None:
        assert self.tested in (REAL, INVENTED) and self.samples >= 1
        assert self.max_new_tokens is not None or not (self.stop or self.temperature or self.samples > 1)

    def identity(self) -> dict[str, Any]:
        """Everything that can change a score, and lm-eval's version."""
        # a field is identity unless it is listed, so one that is added later counts
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in NOT_IDENTITY}
        return plain({**values, "lm_eval": LM_EVAL})

    @property
    def column(self) -> str:
        """The metric's name in tables, with lm-eval's version and a hash of the identity: it keeps a score apart from
        published scores that were made in another way."""
        return f"{self.metric}@lm-eval-{LM_EVAL}/{fingerprint(self.identity())[:6]}"

    @property
    def has_subsets(self) -> bool:
        """Whether each of several tasks reads a subset of its own."""
        return self.split == SUBSETS or (self.tasks is not None and "*" in self.tasks)

    @property
    def split_in_words(self) -> str:
        """What is scored: a split, and the number of its items where it is known."""
        items = "" if self.items is None else f" ({self.items:,} items)"
        return f"{'its subsets' if self.split == SUBSETS else f'split {self.split}'}{items}"

    def describe(self, name: str) -> str:
        """The benchmark as text for the user, under the name of its file."""
        how = f"{self.shots} shots" if self.shots else "no shots"
        if self.chat:
            how += ", as a chat" + (", each a turn" if self.shots and self.multiturn else "")
        else:
            how += ", as plain text"
        if self.max_new_tokens is None:
            how += "; choices compared by likelihood"
        else:
            draws = f"{self.samples} answers at temperature {self.temperature:g}, top-p {self.top_p:g}"
            how += f"; at most {self.max_new_tokens} tokens, {draws if self.temperature else 'greedy'}"
            how += f"; stops at {', '.join(map(repr, self.stop))} or the end of turn" if self.stop else ""
        lines = [
            f"{name}: {self.title} ({self.paper})",
            f"  data     {self.data}, {self.split_in_words}, licence: {self.licence}",
            f"  asks     {self.asks}",
            f"  how      {how}",
            f"  system   {self.system or 'none besides that of the template'}",
            f"  metric   {self.column}, filter {self.filter}; guessing scores {self.floor:g}",
            f"  tried    {self.tested}",
            f"  example  {self.example[0]!r} -> {self.example[1]!r}",
        ]
        return "\n".join([*lines, *([f"  differs  {self.deviation}"] if self.deviation else [])])


def benchmark_names() -> tuple[str, ...]:
    """Names of all benchmarks: the files beside this one."""
    return names_in(__path__)


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of a name; raises SettingsError with the list of names for an unknown one."""
    return load_from(__name__, __path__, name, "evals.names").BENCHMARK


def data_files(name: str, folder: str | Path) -> list[Path]:
    """The benchmark's files in a folder of JSON lines, sorted.

    `<name>.jsonl` (what is scored), `<name>_<split>.jsonl`, or, for a benchmark of several subsets,
    `<name>/<subset>_<split>.jsonl`; rows have the fields of the data on the hub. Raises SettingsError where there are
    none, and where two of them could be the one that is scored.
    """
    root = Path(folder).expanduser()
    found = {path for glob in (f"{name}.jsonl", f"{name}_*.jsonl", f"{name}/*.jsonl") for path in root.glob(glob)}
    # `mmlu_*.jsonl` also matches the files of `mmlu_pro`
    longer = [other for other in benchmark_names() if other.startswith(f"{name}_")]
    mine = sorted(path for path in found if not any(path.name.startswith(other) for other in longer))
    if not mine:
        allowed = f"{name} needs {name}.jsonl, {name}_<split>.jsonl or {name}/<subset>_<split>.jsonl there"
        raise refuse("evals.data_dir", str(folder), allowed, "add the file, or leave evals.data_dir out to use the hub")
    whole, test = root / f"{name}.jsonl", root / f"{name}_{TEST}.jsonl"
    if {whole, test} <= set(mine):
        why = f"{whole.name} and {test.name} lie there, and either could be the one that {name} is scored on"
        raise refuse("evals.data_dir", str(folder), why, "leave one of them")
    one, benchmark = f"{name}_", load_benchmark(name)
    if not benchmark.has_subsets and scored_file(one, mine, benchmark.split) is None:
        why = (
            f"{name} is scored on {benchmark.split_in_words}, and only {', '.join(path.name for path in mine)} is there"
        )
        raise refuse("evals.data_dir", str(folder), why, f"add {name}.jsonl or {one}{benchmark.split}.jsonl")
    return mine


def scored_file(begin: str, files: Sequence[Path], published: str) -> Path | None:
    """Which of a benchmark's files, or of one subset's, is scored; None where they have none.

    `begin` stands before the split in their names, `published` is the split that is scored by the publication. Where
    that is called train, because there is no other, a test file is scored in its place: a training file is never scored
    beside one. A file without a split in its name is the one that is scored.
    """
    by_split = {path.stem.removeprefix(begin): path for path in files if path.stem.startswith(begin)}
    if whole := [path for path in files if path.stem == begin.removesuffix("_")]:
        by_split[published] = whole[0]
    return by_split.get(TEST if published == TRAIN else published) or by_split.get(published)


def benchmark_identity(evals: Evals, name: str) -> dict[str, Any]:
    """What can change a benchmark's score under these settings: its identity, and its data by content or revision.

    Raises SettingsError for an unknown name and where `evals.data_dir` lacks its files, OSError where one cannot be
    read.
    """
    card: dict[str, Any] = {"card": load_benchmark(name).identity()}
    # a server generates the answers; likelihoods come from the model in memory with or without one
    if evals.server is not None and load_benchmark(name).max_new_tokens is not None:
        card["served"] = True
    # a revision that is not set stays null: the newest is resolved when the stage runs, and is in its receipt
    if evals.data_dir is None:
        return card | {"revision": evals.revisions.get(name)}
    # by name and content, so that a folder may move
    files = data_files(name, evals.data_dir)
    # the training file was once scored beside a test file; other addresses stay as they were
    if load_benchmark(name).split == TRAIN and any(path.stem.endswith(f"_{TEST}") for path in files):
        card["scored"] = TEST
    return card | {"files": {path.name: file_sha256(path) for path in files}}


def benchmark_files(evals: Evals, name: str) -> dict[str, Any]:
    """Where a benchmark's data is, and the server that generates the answers; no part of the identity.

    Raises SettingsError where `evals.data_dir` lacks its files.
    """
    where: dict[str, Any] = {} if evals.server is None else {"server": evals.server}
    if evals.data_dir is not None:
        where["files"] = [str(path.resolve()) for path in data_files(name, evals.data_dir)]
    return where
