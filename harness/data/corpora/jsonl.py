"""Corpus `jsonl`: your own rows, from JSONL, Parquet or a saved Hugging Face data set.

`tulu3.py` is the published mixture; this corpus reads any file. A row has `messages`, or a prompt and a completion
(text, or lists of messages in TRL's form). Rows of several sources have a `source` column. With `answers=none` a row
may be a prompt alone: messages that end with the user's turn, or no completion.

    corpus=jsonl corpus.path=answers.jsonl
    corpus=jsonl corpus.path=gsm8k.jsonl corpus.prompt_column=question corpus.completion_column=answer
    corpus=jsonl corpus.path=prompts.jsonl corpus.answers=none method=seq_kd
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.data.corpora import CorpusSettings, Example, Size
from harness.data.corpora._files import choose_files, count_rows, identity_of, read_rows, why_unreadable
from harness.data.corpora._names import Reading, source_key
from harness.data.corpora._rows import (
    BESIDE_PROMPT,
    CONTEXT,
    MEANINGFUL_IN_ROW,
    UNANSWERED,
    bad_turns,
    count_or_refuse,
    encodable,
    fields_left_out,
    is_answered,
    meaningful_field,
    nothing_to_score,
    plain_turns,
)
from harness.data.truth import NoTruth, truth_text

SAMPLE = 200  # rows read to estimate lengths
CHARACTERS_PER_TOKEN = 4.0


@dataclass
class Corpus(CorpusSettings):
    """Any rows of conversations, read in the order of the files."""

    path: str | None = None
    """A .jsonl or .parquet file, a folder of them, or a data set saved by `datasets`; known by its sha256."""
    name: str = "rows"
    """Source of the rows without a source column."""
    messages_column: str = "messages"
    """Column of the conversation; where it is absent, prompt and completion are read."""
    prompt_column: str = "prompt"
    """Column of the user's turn."""
    completion_column: str = "completion"
    """Column of the assistant's turn."""
    source_column: str = "source"
    """Column that names a row's source."""
    id_column: str = "id"
    """Column of the row's id; rows without one are numbered."""
    truth_column: str | None = None
    """Column of the right final answer, for verifiers; null: none is known."""
    license: str | None = None
    """Licence of the rows, for receipts (e.g. CC-BY-4.0); null: none is stated. It changes no row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dropped: Counter[str] = Counter()
        self.notes: tuple[str, ...] = ()
        self.reading = Reading(self.name)

    @property
    def may_have_truth(self) -> bool:
        """Whether a column of truths is named."""
        return self.truth_column is not None

    def identity(self, world_seed: int) -> dict[str, Any]:
        """Every field that changes rows, and the sha256 of each file in reading order.

        Raises SettingsError where the path has no data, OSError where a file cannot be read.
        """
        return identity_of(self, self._files())

    def examples(self, world_seed: int) -> Iterator[Example]:
        """Yield the rows of the chosen sources.

        Raises SettingsError for a bad row unless bad rows are dropped and counted, and for a source without a row.
        """
        self.dropped, self.reading = Counter(), Reading(self.name)
        chosen = choose_files("corpus.path", self._path())
        self.notes, files = chosen.notes, chosen.files
        self.read_from = [file_sha256(file) for file in files]
        wanted = None if self.sources is None else {source_key(name) for name in self.sources}
        for number, row in enumerate(read_rows(files, self._columns()), start=1):
            problem = row.problem
            if not problem and row.values is not None:
                source, problem = self.reading.source(row.values.get(self.source_column))
                if not problem and wanted is not None and source_key(source) not in wanted:
                    continue
                problem = problem or self._problem(row.values)
                if not problem:
                    id, problem = self.reading.id(row.values.get(self.id_column), f"{source}-{number}")
                if not problem:
                    messages, values = self._messages(row.values), row.values
                    truth, problem = _truth(values.get(self.truth_column or ""))
                if not problem:
                    self.reading.left_out.update(fields_left_out(messages))
                    self.reading.unread.update(name for name in CONTEXT if self._is_unread(name, values))
                    yield Example(id=id, source=source, messages=plain_turns(messages), truth=truth)
                    continue
            way_out = ", or corpus.answers=none to train on prompts alone" if problem in UNANSWERED else ""
            count_or_refuse(self.on_bad_row, self.dropped, row.where, problem, way_out)
        found = {source_key(name) for name in self.reading.spelt.values()}
        absent = sorted(name for name in set(self.sources or ()) if source_key(name) not in found)
        if absent:
            raise refuse(
                "corpus.sources",
                absent,
                "no row has such a source",
                f"the sources here are {', '.join(sorted(self.reading.spelt.values())) or 'none'}",
            )

    def provenance(self) -> dict[str, Any]:
        """After `examples` was exhausted: the files' sha256, dropped rows by reason, and what was read otherwise."""
        warnings = [*self.notes, *self.reading.warnings()]
        return {"files": self.read_from, "dropped": dict(self.dropped), **({"warnings": warnings} if warnings else {})}

    def size(self, family: str = "words") -> Size | None:
        """Rows from the files' metadata, tokens from the first rows' characters, four to a token.

        Where none of these rows has an answer, an answer is assumed to have `max_new_tokens`. Raises SettingsError
        where the path has no data.
        """
        # how many rows the chosen sources have is known only after all are read
        if self.sources is not None:
            return None
        files = self._files()
        first = islice(read_rows(files, self._columns()), SAMPLE)
        sample = [self._messages(row.values) for row in first if row.values]
        good = [messages for messages in sample if not bad_turns(messages, self.answers == "given")]
        if not good:
            return None
        length = {True: 0, False: 0}
        for turn in (turn for messages in good for turn in messages):
            length[turn["role"] == "assistant"] += len(turn["content"])
        prompt, response = (length[answers] / len(good) / CHARACTERS_PER_TOKEN for answers in (False, True))
        if not any(map(is_answered, good)):
            response = float(self.max_new_tokens)
        # what is held out is not trained on
        rows = max(1, count_rows(files) - self.heldout_rows)
        return Size(rows, response, prompt + response, self.heldout_rows)

    def check(self) -> None:
        """Raise SettingsError for a missing path, a first row without the named columns, and prompts of which none has
        an answer to score."""
        files = self._files()
        first = next((row for row in read_rows(files) if row.values is not None), None)
        if first is None or first.values is None:
            cause = next((why for file in files if (why := why_unreadable(file))), "give a file with at least one row")
            raise refuse("corpus.path", self.path, "the data has no readable row", cause)
        columns = set(first.values)
        listed = ", ".join(sorted(columns))
        alone = self.answers == "none"
        needed = {self.prompt_column} if alone else {self.prompt_column, self.completion_column}
        if self.messages_column not in columns and not needed <= columns:
            if "conversations" in columns:
                reason = "its rows have conversations (ShareGPT's form), and rows need messages with role and content"
                raise refuse("corpus.path", self.path, reason, "rename from and value (human: user, gpt: assistant)")
            raise refuse(
                "corpus.path",
                self.path,
                f"its columns are {listed}, and rows need {self.messages_column}, or "
                f"{self.prompt_column}" + ("" if alone else f" and {self.completion_column}"),
                "name them, e.g. corpus.prompt_column=question corpus.completion_column=answer"
                + ("" if alone else ", or set corpus.answers=none for prompts alone"),
            )
        # `all` ends at the first answered row, so only a file of prompts alone is read to its end
        if alone and all(
            bad_turns(self._messages(row.values)) for row in read_rows(files, self._columns()) if row.values
        ):
            raise nothing_to_score()
        # the first rows, so that what every row has is refused before anything runs
        for row in islice(read_rows(files, self._columns()), SAMPLE if self.on_bad_row == "refuse" else 0):
            if row.values is not None and (problem := self._problem(row.values)) and self.sources is None:
                way_out = ", or corpus.answers=none to train on prompts alone" if problem in UNANSWERED else ""
                count_or_refuse(self.on_bad_row, Counter(), row.where, problem, way_out)
        if self.truth_column is not None and self.truth_column not in columns:
            raise refuse(
                "corpus.truth_column",
                self.truth_column,
                f"the columns are {listed}",
                "leave it out where no truth is known",
            )

    def _path(self) -> str:
        if not self.path:
            raise refuse("corpus.path", self.path, "this corpus needs a file or folder", "set corpus.path=<file>")
        return self.path

    def _files(self) -> list[Path]:
        return choose_files("corpus.path", self._path()).files

    def _problem(self, values: Mapping[str, Any]) -> str:
        """What makes a row a bad one, in a few words; "" for a good row."""
        names = MEANINGFUL_IN_ROW if self._has_messages(values) else (*MEANINGFUL_IN_ROW, *BESIDE_PROMPT)
        if name := meaningful_field({one: values[one] for one in names if self._is_unread(one, values)}, names):
            return f"the row has the field {name}, which is not read"
        return bad_turns(self._messages(values), self.answers == "given")

    def _is_unread(self, name: str, values: Mapping[str, Any]) -> bool:
        return values.get(name) not in (None, "", [], {}) and name not in self._named

    def _has_messages(self, values: Mapping[str, Any]) -> bool:
        return values.get(self.messages_column) is not None

    def _columns(self) -> list[str]:
        return [*self._named, *MEANINGFUL_IN_ROW, *BESIDE_PROMPT, *CONTEXT]

    @cached_property
    def _named(self) -> tuple[str, ...]:
        named = [
            self.messages_column,
            self.prompt_column,
            self.completion_column,
            self.source_column,
            self.id_column,
            self.truth_column,
        ]
        return tuple(name for name in named if name)

    def _messages(self, values: Mapping[str, Any]) -> Any:
        # by value, not by column: files of mixed forms may have both columns, one of them null
        if self._has_messages(values):
            return values[self.messages_column]
        prompt, completion = values.get(self.prompt_column), values.get(self.completion_column)
        if self.answers == "none" and not completion:
            return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        if isinstance(prompt, list) and isinstance(completion, list):
            return prompt + completion
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _truth(value: Any) -> tuple[str | None, str]:
    """A truth as text, and the problem of one that is none."""
    try:
        truth = truth_text(value)
    except NoTruth as problem:
        return None, str(problem)
    return (truth, "") if truth is None or encodable(truth) else (None, "the truth is not UTF-8")
