"""In-context generation: after a few human rows a teacher generates the next prompt, then its answer.

As in Self-Instruct (arXiv 2212.10560) a few human rows precede each new one; here they are earlier turns of a
conversation, so any model trained on conversations can continue. Reasoning before an answer is left out. `filters.py`
decides which of the rows are kept. `training/student_text.py` generates answers during training.

    prompter = SyntheticPrompter(teacher, settings, {"cure": [("Remedy for Zovami?", "Take onad")]})
    prompter.generate(range(256))             # row `number` depends on the seed and that number alone
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data.chat import end_of_turn_id, prompt_ids_many
from harness.data.reasoning import answer_of
from harness.data.sequences import draw_seed
from harness.teachers import teacher as teachers

Pair = tuple[str, str]
"""A prompt and its answer."""
PLACE = "PLACE-OF-THE-NEXT-PROMPT"


@dataclass(frozen=True)
class GeneratedRow:
    """A row the teacher generated; an empty prompt or answer was malformed (not ended as the template ends it)."""

    number: int
    prompt: str
    answer: str
    source: str
    """The source of the examples."""
    examples: tuple[Pair, ...]
    """The human rows in the teacher's context, in order."""


def turns(pair: Pair) -> list[dict[str, str]]:
    """The pair as a conversation."""
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


class SyntheticPrompter:
    """A teacher, in memory or served over HTTP, with the human rows that it is prompted with."""

    def __init__(
        self, teacher: teachers.GeneratingTeacher, settings: Mapping[str, Any], pairs: Mapping[str, Sequence[Pair]]
    ) -> None:
        """`settings`: `examples_in_context`, `seed`, `sampling_temperature`, `max_new_tokens`, `max_length`.

        `pairs`: the human rows by source; examples are drawn from them and from nothing else. Raises SettingsError
        where the template ends no turn.
        """
        self.teacher, self.tokenizer, self.settings = teacher, teacher.tokenizer, settings
        self.sources = sorted(pairs)
        self.pairs = [pairs[source] for source in self.sources]
        self.end = end_of_turn_id(self.tokenizer)
        # what the template writes between a prompt and its answer, found with a placeholder
        rendered = self._texts([[{"role": "user", "content": PLACE}]], generation_prompt=True)[0]
        self.after_prompt = rendered.partition(PLACE)[2]
        first = self._ids(self.after_prompt)[0]
        # Where a template ends the user's turn with plain text (Tülu), no token stops the prompt; `_prompt` cuts it.
        self.prompt_stops = {self.end} | ({first} if first in self.tokenizer.added_tokens_decoder else set())

    def generate(self, numbers: Sequence[int]) -> list[GeneratedRow]:
        """A prompt and an answer for each number. Raises SettingsError where a server fails."""
        shown = [self.examples(number) for number in numbers]
        place = {"role": "user", "content": PLACE}
        texts = self._texts([[*_conversation(examples), place] for _, examples in shown], generation_prompt=False)
        # cut where the new prompt begins, so the teacher goes on with the user's turn
        begun = [self._ids(text.partition(PLACE)[0]) for text in texts]
        limit = max(
            self.settings["max_new_tokens"], self.settings["max_length"]
        )  # a prompt may be longer than an answer
        ids = self._continue(begun, "prompt", numbers, limit, self.prompt_stops)
        rows = [
            GeneratedRow(number, self._prompt(one), "", source, examples)
            for number, one, (source, examples) in zip(numbers, ids, shown, strict=True)
        ]
        # malformed prompts are not answered; their place in the list stays empty
        answers = iter(self.answer([row for row in rows if row.prompt], "answer"))
        return [
            GeneratedRow(row.number, row.prompt, next(answers) if row.prompt else "", row.source, row.examples)
            for row in rows
        ]

    def answer(self, rows: Sequence[GeneratedRow], draw: str) -> list[str]:
        """An answer to each row's prompt after its examples, empty where it was cut; `draw` names the draw.

        Raises SettingsError where a server fails.
        """
        if not rows:
            return []
        conversations = [[*_conversation(row.examples), {"role": "user", "content": row.prompt}] for row in rows]
        written = self._continue(
            prompt_ids_many(self.tokenizer, conversations),
            draw,
            [row.number for row in rows],
            self.settings["max_new_tokens"],
            {self.end},
        )
        return [self._answer(answer[:-1]) if answer[-1:] == [self.end] else "" for answer in written]

    def examples(self, number: int) -> tuple[str, tuple[Pair, ...]]:
        """The source and the human rows that precede row `number`; all of one source, so that the new row is too."""
        generator = np.random.default_rng(draw_seed(self.settings["seed"], "examples", number))
        sizes = np.array([len(rows) for rows in self.pairs])  # (sources,)
        # sources in proportion to their rows, as in the human data
        chosen = int(generator.choice(len(sizes), p=sizes / sizes.sum()))
        rows = self.pairs[chosen]
        size = min(self.settings["examples_in_context"], len(rows))
        return self.sources[chosen], tuple(rows[int(i)] for i in generator.choice(len(rows), size, replace=False))

    def _continue(
        self, prompts: list[list[int]], draw: str, numbers: Sequence[int], limit: int, stops: set[int]
    ) -> list[list[int]]:
        seeds = [draw_seed(self.settings["seed"], draw, number) for number in numbers]
        return self.teacher.answers(prompts, limit, self.settings["sampling_temperature"], seeds, stops)

    def _prompt(self, ids: list[int]) -> str:
        """The user's turn as text; empty where the teacher did not end it as the template does."""
        if ids and ids[-1] in self.prompt_stops:
            # the stop token may be the first of what follows a prompt; that text is put back, so that one rule finds
            # the end
            starts_answer = self._ids(self.after_prompt)[0] == ids[-1]
            text = self._decoded(ids[:-1]) + (self.after_prompt if starts_answer else "")
        else:
            text = self._decoded(ids)
        prompt, ending, _ = text.partition(self.after_prompt)
        return self._text(self._ids(prompt)) if ending else ""

    def _texts(self, conversations: list[list[dict[str, str]]], generation_prompt: bool) -> list[str]:
        found: Any = self.tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=generation_prompt
        )
        return found

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def _answer(self, ids: list[int]) -> str:
        """An answer as text, without its reasoning; empty where that was not ended."""
        text = self._decoded(ids)
        answer = answer_of(text, self.after_prompt)
        return self._text(ids if answer == text else self._ids(answer or ""))

    def _text(self, ids: list[int]) -> str:
        # a special token inside would end or open a turn when the row is rendered
        special = any(token in self.tokenizer.added_tokens_decoder for token in ids)
        return "" if special else self._decoded(ids).strip()


def _conversation(examples: Sequence[Pair]) -> list[dict[str, str]]:
    return [turn for pair in examples for turn in turns(pair)]
