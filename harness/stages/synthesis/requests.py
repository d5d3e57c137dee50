"""Synthesis: the teacher generates batches of rows, and the rows that pass the filters are kept.

`synthesize.py` sets the number of rows and measures those that are kept. Each batch of generated text is a part of
the stage's partial output, so a stopped stage generates nothing twice; the filters run again.

    synthesis = Synthesis(prompter, tokenizer, judge, settings, truth, partial_output)
    synthesis.generate(range(256), wanted=100)
    synthesis.columns, synthesis.rendered           # the rows kept so far
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from harness.data.chat import Rendered, render_many
from harness.stages.labels import FEATURES
from harness.stages.synthesis.filters import Candidate, Judge, inconsistent
from harness.stages.synthesis.prompting import GeneratedRow, SyntheticPrompter, turns
from harness.store.partial_output import PartialOutput, read_batch

TEXTS = pa.schema([("prompt", pa.string()), ("answer", pa.string())])
SAMPLES = pa.schema([("number", pa.int64()), ("answers", pa.list_(pa.string()))])
Truth = Callable[[str], str | None]
"""The right answer to a prompt, or None where it is not known."""


class Synthesis:
    """Batches of rows: generated, filtered, answered again where the self-consistency vote is on, kept in order."""

    def __init__(
        self,
        prompter: SyntheticPrompter,
        tokenizer: PreTrainedTokenizerBase,
        judge: Judge,
        settings: Mapping[str, Any],
        truth: Truth | None,
        partial_output: PartialOutput,
    ) -> None:
        """`tokenizer` renders the rows that are kept: the student's."""
        self.tokenizer = tokenizer
        self.prompter, self.judge, self.settings = prompter, judge, settings
        self.truth, self.partial_output = truth, partial_output
        self.columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
        self.rendered: list[Rendered] = []
        self.sources: list[str] = []
        """The source of each generated row."""
        self.kept: Counter[str] = Counter()

    def tally(self) -> Counter[str]:
        """Generated rows by source."""
        return Counter(self.sources)

    def generate(self, numbers: range, wanted: int) -> None:
        """Generate and filter the rows of these numbers, until `wanted` rows are kept. Raises Preempted."""
        rows = self._generated(numbers)
        # a malformed row has nothing to render; it is rejected under its own reason
        whole = [row for row in rows if row.prompt and row.answer]
        pairs = [turns((row.prompt, row.answer)) for row in whole]
        found = render_many(self.tokenizer, pairs, self.settings["max_length"])
        rendered = {row.number: one for row, one in zip(whole, found, strict=True)}
        candidates = [self._candidate(row, rendered.get(row.number)) for row in rows]
        reasons = [self.judge.reason(row) for row in candidates]
        passed = [
            row
            for row, candidate, reason in zip(rows, candidates, reasons, strict=True)
            if not reason and not self.judge.repeats(candidate)
        ]
        # The vote costs several answers a row, so it is taken for rows that pass all other filters.
        samples = self._samples(numbers, passed)
        for row, candidate, reason in zip(rows, candidates, reasons, strict=True):
            self.sources.append(row.source)
            # after the pure filters and row by row: it depends on the rows kept so far
            reason = reason or self.judge.repeats(candidate)
            if not reason and self.settings["self_consistency"]:
                reason = inconsistent(row.answer, samples[row.number], self.settings["self_consistency"])
            if reason:
                self.judge.reject(reason)
                continue
            self._keep(row, candidate, rendered[row.number])
            # rows after this one count as not generated: neither asked for, kept nor rejected
            if len(self.judge.kept) == wanted:
                break

    def _candidate(self, row: GeneratedRow, rendered: Rendered | None) -> Candidate:
        if rendered is None:
            return Candidate(row.prompt, row.answer, row.examples)
        prompt_tokens = rendered.starts[0] if rendered.starts else len(rendered.input_ids)
        truth = self.truth(row.prompt) if self.truth else None
        return Candidate(
            row.prompt, row.answer, row.examples, prompt_tokens, rendered.response_tokens, rendered.truncated, truth
        )

    def _generated(self, numbers: range) -> list[GeneratedRow]:
        """The rows the teacher generated for these numbers: one part."""

        def write() -> pa.RecordBatch:
            rows = self.prompter.generate(numbers)
            texts = {"prompt": [row.prompt for row in rows], "answer": [row.answer for row in rows]}
            return pa.record_batch(texts, schema=TEXTS)

        texts = read_batch(self.partial_output.made(f"{numbers.start:08d}-rows", write)).to_pylist()
        return [
            GeneratedRow(number, text["prompt"], text["answer"], *self.prompter.examples(number))
            for number, text in zip(numbers, texts, strict=True)
        ]

    def _samples(self, numbers: range, rows: Sequence[GeneratedRow]) -> dict[int, list[str]]:
        """More answers to each prompt, by the row's number: one part; empty where the vote is off."""
        if not self.settings["self_consistency"]:
            return {}

        def sample() -> pa.RecordBatch:
            draws = range(self.settings["consistency_samples"])
            columns = [self.prompter.answer(rows, f"answer again {draw}") for draw in draws]
            answers = [[column[place] for column in columns] for place in range(len(rows))]
            return pa.record_batch({"number": [row.number for row in rows], "answers": answers}, schema=SAMPLES)

        found = read_batch(self.partial_output.made(f"{numbers.start:08d}-samples", sample)).to_pylist()
        return {row["number"]: row["answers"] for row in found}

    def _keep(self, row: GeneratedRow, candidate: Candidate, rendered: Rendered) -> None:
        self.judge.keep(candidate)
        self.kept[row.source] += 1
        self.rendered.append(rendered)
        # negative numbers, because they are no rows of a mixture
        values = (-1 - row.number, f"synthetic-{row.number}", rendered.input_ids, rendered.starts, rendered.ends)
        for name, value in zip(FEATURES, values, strict=True):
            self.columns[name].append(value)
