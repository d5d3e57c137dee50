"""Corpora: each file here is one kind of instruction data, read row by row.

A corpus is a dataclass `Corpus` whose fields are its settings. Tokens, fractions and folders of the store belong to the
stages `mixture` and `subset`. The file's name is the corpus's name; nothing else needs to change to add one.

    Corpus = load_corpus("mini")
    next(Corpus(noise="clean").examples(world_seed=0)).messages
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.config.checks import check_at_least, check_choice, check_positive
from harness.config.registry import load_from, name_of, names_in

ON_BAD_ROW = ("refuse", "drop")
ANSWERS = ("given", "none")
CONTROL_TOKENS = ("text", "refuse")


@dataclass(frozen=True)
class Example:
    """One row: a conversation that ends with the assistant's turn, or a prompt that ends with the user's, with its
    id and source."""

    id: str
    messages: list[dict[str, str]]
    """Turns in order, each `{"role": "user" | "assistant" | "system", "content": text}`."""
    source: str
    """The part of the corpus the row belongs to; fractions are taken per source."""
    split: str = ""
    """`train` or `heldout`; empty lets the stage `mixture` choose the held-out rows."""
    truth: str | None = None
    """The right final answer where it is known (verifiers compare with it), else None."""


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
    """Whether `truth` knows the right answer to prompts that are not among the corpus's rows."""
    knows_questions: ClassVar[bool] = False
    """Whether `asks` knows what a prompt asks; elsewhere prompts are compared by their words."""

    sources: list[str] | None = None
    """Keep only rows of these sources; null keeps all."""
    max_length: int = 2048
    """Longest rendered row in tokens; longer rows are truncated and counted."""
    max_new_tokens: int = 256
    """Length limit of generated text (teacher labels, student text, answers), in tokens."""
    heldout_rows: int = 1000
    """About how many rows are held out, chosen per source by a hash of the prompt; not used by a corpus that sets
    `Example.split` itself."""
    least_heldout_rows: int = 20
    """A grid that is scored on held-out rows is refused before training where fewer than these (or than half of
    `heldout_rows`, where that is less) are held out; lower it to score on a few. Not for a corpus that sets
    `Example.split` itself."""
    on_bad_row: str = "refuse"
    """A row that cannot be read, or that a model's chat template rejects: `refuse` (stop and name it) or `drop` (leave
    it out and count it)."""
    control_tokens: str = "text"
    """A control token of the tokenizer or chat template inside the text of a message, e.g. `<|im_end|>`: `text` (it is
    encoded as plain text, opens and closes no turn, and is counted) or `refuse` (a bad row, see `on_bad_row`)."""
    answers: str = "given"
    """`given`, or `none`: students train on prompts alone. A row is cut before its first answer (a row that ends with
    the user's turn is a prompt already), no row is set apart for validation, and held-out rows are taken among answered
    ones. The fine-tuning of a teacher is not affected."""

    def __post_init__(self) -> None:
        check_positive("corpus.max_length", self.max_length)
        check_positive("corpus.max_new_tokens", self.max_new_tokens)
        check_positive("corpus.heldout_rows", self.heldout_rows)
        check_choice("corpus.on_bad_row", self.on_bad_row, ON_BAD_ROW)
        check_choice("corpus.answers", self.answers, ANSWERS)
        check_choice("corpus.control_tokens", self.control_tokens, CONTROL_TOKENS)
        check_at_least("corpus.least_heldout_rows", self.least_heldout_rows, 1)

    @property
    def may_have_truth(self) -> bool:
        """Whether held-out rows may have a known truth, which `verified` and `nll_truth` need."""
        return True

    def identity(self, world_seed: int) -> dict[str, Any]:
        """Everything that changes rows, as plain JSON; files by their sha256, never by their folder.

        It includes `answers` only where that setting lets a corpus read rows without an answer. Kinds that read files
        raise SettingsError where there are none, and OSError where one cannot be read.
        """
        raise NotImplementedError

    def examples(self, world_seed: int) -> Iterator[Example]:
        """Yield the rows one by one, always in the same order.

        Kinds that read files raise SettingsError for a bad row.
        """
        raise NotImplementedError

    def truth(self, prompt: str, world_seed: int) -> str | None:
        """The right answer to any prompt, in the wording of this corpus; None where it is not known."""
        return None

    def known_sources(self) -> tuple[str, ...] | None:
        """Names of the sources its training rows have; None where they are known only once the rows are read."""
        return None if self.sources is None else tuple(dict.fromkeys(self.sources))

    @staticmethod
    def asks(prompt: str) -> str | None:
        """What a prompt asks, in whatever wording; None where the corpus does not know."""
        return None

    def size(self, family: str = "words") -> Size | None:
        """The corpus's expected size, estimated without reading all data; None if unknown. `family`: that of the mini
        whose tokenizer is meant, where the corpus knows it."""
        return None

    def provenance(self) -> dict[str, Any]:
        """After `examples` was exhausted: `files`, `revision`, `licenses`, `dropped`, `warnings`, those that exist."""
        return {}

    def check(self) -> None:
        """Cheap check before a run: raises SettingsError for what would certainly fail, e.g. a missing file."""

    def check_family(self, family: str) -> None:
        """Raise SettingsError where rows are known to be longer than `max_length` in the tokens of this family."""


def corpus_names() -> tuple[str, ...]:
    """Names of all corpora: the files beside this one."""
    return names_in(__path__)


def load_corpus(name: str) -> type[Any]:
    """The `Corpus` dataclass of one file; raises SettingsError with the list of names for an unknown one."""
    return load_from(__name__, __path__, name, "corpus").Corpus


def corpus_name(corpus: object) -> str:
    """The name of a corpus instance: its file."""
    return name_of(corpus)


def corpus_from(settings: Mapping[str, Any]) -> Any:
    """The corpus instance of plain settings, `{"kind": name, ...its fields}`.

    Raises SettingsError for an unknown kind, and for values that the corpus refuses.
    """
    # a copy, because `pop` would take the kind out of the caller's settings
    fields = dict(settings)
    return load_corpus(fields.pop("kind"))(**fields)
