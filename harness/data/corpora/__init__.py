"""Corpora: each file here is one kind of instruction data, read row by row.

A corpus is a dataclass `Corpus` whose fields are its settings; it knows nothing of tokens, fractions or
folders of the store (the mixture and subset stages do). The file's name is the corpus's name; nothing
else needs to change to add one.

    Corpus = load_corpus("mini")
    next(Corpus(noise="clean").examples(world_seed=0)).messages
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.config.checks import check_choice, check_positive
from harness.config.registry import load_from, name_of, names_in

ON_BAD_ROW = ("refuse", "drop")
ANSWERS = ("given", "none")


@dataclass(frozen=True)
class Example:
    """One row: a conversation that ends with the assistant's turn, or a prompt that ends with the user's, and where
    it comes from."""

    id: str
    messages: list[dict[str, str]]
    """Turns in order, each `{"role": "user" | "assistant" | "system", "content": text}`."""
    source: str
    """The part of the corpus the row belongs to; fractions are taken per source."""
    split: str = ""
    """`train` or `heldout`; empty lets the mixture stage carve held-out rows."""
    truth: str | None = None
    """The right final answer where it is known (verifiers score against it), else None."""


@dataclass(frozen=True)
class Size:
    """Expected train rows, mean tokens per row (of the responses, and of the whole row), held-out rows."""

    rows: int
    response_tokens: float
    row_tokens: float
    heldout_rows: int


@dataclass
class CorpusSettings:
    """Settings every corpus has; a kind adds its own fields and overrides the methods."""

    knows_truth: ClassVar[bool] = False
    """Whether `truth` can tell the right answer to prompts that are not among the corpus's rows."""
    knows_questions: ClassVar[bool] = False
    """Whether `asks` can tell what a prompt asks; elsewhere only its words can."""

    sources: list[str] | None = None
    """Keep only rows of these sources; null keeps all."""
    max_length: int = 2048
    """Longest rendered row in tokens; longer rows are truncated and counted."""
    max_new_tokens: int = 256
    """Length limit of generated text (teacher labels, student text, answers), in tokens."""
    heldout_rows: int = 1000
    """About how many rows are held out, carved per source by a hash of the prompt; a corpus that
    sets `Example.split` itself decides instead."""
    on_bad_row: str = "refuse"
    """A row that cannot be read: `refuse` (stop and name it) or `drop` (leave it out and count it)."""
    answers: str = "given"
    """`given`, or `none`: students train on prompts alone, whatever the rows hold. A row is cut before its first
    answer (one that ends with the user's turn is a prompt as it stands), none is set apart for validation, and
    what is held out is taken among answered rows. A teacher's own lessons are not touched by it."""

    def __post_init__(self) -> None:
        name = corpus_name(self)
        check_positive(f"{name}.max_length", self.max_length)
        check_positive(f"{name}.max_new_tokens", self.max_new_tokens)
        check_positive(f"{name}.heldout_rows", self.heldout_rows)
        check_choice(f"{name}.on_bad_row", self.on_bad_row, ON_BAD_ROW)
        check_choice(f"{name}.answers", self.answers, ANSWERS)

    def identity(self, world_seed: int) -> dict[str, Any]:
        """Everything that changes rows, as plain JSON; files by their sha256, never by their folder.

        `answers` is in it only where a corpus reads rows without one because of it.
        """
        raise NotImplementedError

    def examples(self, world_seed: int) -> Iterator[Example]:
        """Yield the rows one by one, always in the same order."""
        raise NotImplementedError

    def truth(self, prompt: str, world_seed: int) -> str | None:
        """The right answer to any prompt as this corpus words it; None where it is not known."""
        return None

    @staticmethod
    def asks(prompt: str) -> str | None:
        """What a prompt asks, however it is put; None where this corpus cannot tell, and its words must do."""
        return None

    def size(self, family: str = "words") -> Size | None:
        """What to expect of the corpus without reading data; None if unknown. `family`: of the mini that reads it,
        where the corpus knows its tokens."""
        return None

    def provenance(self) -> dict[str, Any]:
        """After the rows were read: `files`, `revision`, `licenses`, `dropped`, `warnings`, where there are any."""
        return {}

    def check(self) -> None:
        """Cheap preflight: raise SettingsError for what would certainly fail, a missing file say."""

    def check_family(self, family: str) -> None:
        """Raise SettingsError where rows are known to be longer than `max_length` for a mini of this family."""


def corpus_names() -> tuple[str, ...]:
    """Names of all corpora: the files beside this one."""
    return names_in(__path__)


def load_corpus(name: str) -> type[Any]:
    """The `Corpus` dataclass of one file; unknown names are refused with the list of real ones."""
    return load_from(__name__, __path__, name, "corpus").Corpus


def corpus_name(corpus: object) -> str:
    """The name of a corpus instance: its file."""
    return name_of(corpus)


def corpus_from(settings: Mapping[str, Any]) -> Any:
    """The corpus instance of plain settings, `{"kind": name, ...its fields}`."""
    fields = dict(settings)
    return load_corpus(fields.pop("kind"))(**fields)
