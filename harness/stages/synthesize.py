"""Stage `synthesize`: new prompts with answers that the teacher writes after seeing a few human rows.

For domains with few human rows (arXiv 2606.22942). Human rows of one source stand as earlier turns; the
teacher goes on with the next user turn, then answers it. `teach.py` answers prompts that exist. Examples
come from the cell's own training rows only; copies of them and prompts held out for evaluation are
dropped and counted, so nothing that is scored is ever trained on.

    synthetic/         data set: row, id, input_ids, starts, ends
    synthetic.json     asked, kept, rejected by reason, share of distinct prompts
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import load_from_disk

from harness import track
from harness.chat import end_of_turn_id, prompt_ids_many, render_many
from harness.checks import SettingsError
from harness.config import Machine
from harness.corpora._rows import prompt_hash, row_hash
from harness.cost import forward_flops
from harness.generate import generate
from harness.models import count_parameters, device_of, load_model, load_tokenizer
from harness.sequences import draw_seed
from harness.stages.teach import FEATURES, check_tokenizer, save_rows
from harness.store import write_json

ASKED_AT_MOST = 4  # times the rows wanted; then the stage makes do with what it has
LEAST_KEPT = 0.1  # of the rows wanted; below it the stage fails, with the reasons
ROWS_AT_ONCE = 256
PLACE = "PLACE-OF-THE-NEXT-PROMPT"


def make_synthesize(
    settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine
) -> dict[str, Any]:
    """Ask the teacher until `synthetic_rows` are kept or four times as many were asked for.

    `settings`: `synthetic_rows`, `examples_in_context`, `seed`, `sampling_temperature`, `max_new_tokens`,
    `max_length` (tokens). `inputs`: `subset` (its train rows are the examples), `mixture` (their text, and
    the held-out prompts), `teacher`. Raises SettingsError where the tokenizers differ or fewer than a
    tenth of the rows could be kept.
    """
    device = device_of(machine)
    tokenizer = load_tokenizer(inputs["teacher"])
    check_tokenizer(inputs["subset"], inputs["mixture"], tokenizer, "a teacher's rows")
    model = load_model(inputs["teacher"], device=device)
    writer = _Writer(model, tokenizer, settings, _human_pairs(inputs))
    heldout = pq.read_table(inputs["mixture"] / "heldout.parquet", columns=["prompt_hash"])
    judge = _Judge(settings["max_length"], writer.human_prompts, set(heldout["prompt_hash"].to_pylist()))

    wanted = settings["synthetic_rows"]
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    asked = 0
    while len(columns["row"]) < wanted and asked < ASKED_AT_MOST * wanted:
        numbers = range(asked, min(asked + ROWS_AT_ONCE, ASKED_AT_MOST * wanted))
        pairs = writer.write(numbers)
        rendered = iter(render_many(tokenizer, [_turns(pair) for pair in pairs if all(pair)], settings["max_length"]))
        for number, pair in zip(numbers, pairs, strict=True):
            asked = number + 1
            row = next(rendered) if all(pair) else None
            if judge.keeps(pair, row) and row is not None:
                values = (-1 - number, f"synthetic-{number}", row.input_ids, row.starts, row.ends)
                for name, value in zip(FEATURES, values, strict=True):
                    columns[name].append(value)
                if len(columns["row"]) == wanted:
                    break
        track.report(len(columns["row"]), wanted, note="synthetic rows")

    kept = len(columns["row"])
    counts = {"asked": asked, "kept": kept, "wanted": wanted, **judge.rejected}
    reasons = ", ".join(f"{name} {count}" for name, count in judge.rejected.most_common()) or "none"
    if kept < max(1, LEAST_KEPT * wanted):
        raise SettingsError(
            f"synthetic_rows={wanted} cannot be reached: of {asked} rows written, {kept} were usable "
            f"(rejected: {reasons}); choose a teacher that can write prompts, or fewer rows."
        )
    save_rows(columns, out / "synthetic")
    distinct = len(judge.prompts) / kept
    write_json(
        out / "synthetic.json",
        {"asked": asked, "kept": kept, "wanted": wanted, "rejected": dict(judge.rejected), "distinct_share": distinct},
    )
    warnings = []
    if kept < wanted:
        warnings.append(f"{kept} of {wanted} synthetic rows after asking {asked} times (rejected: {reasons})")
    flops = forward_flops(count_parameters(model), writer.read + writer.written)
    return {
        "cost": {"teacher_tokens": writer.read, "generated_tokens": writer.written, "flops": flops},
        "counts": counts,
        "metrics": {"distinct_share": distinct},
        "warnings": warnings,
    }


Pair = tuple[str, str]  # a prompt and its answer; an empty one was malformed


class _Writer:
    """The teacher with its examples; row `number` is drawn from the seed and that number alone."""

    def __init__(self, model: Any, tokenizer: Any, settings: dict[str, Any], pairs: dict[str, list[Pair]]) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.by_source = [pairs[source] for source in sorted(pairs)]
        self.human_prompts = {prompt_hash(_turns(pair)) for rows in self.by_source for pair in rows}
        self.read = self.written = 0
        self.end = end_of_turn_id(tokenizer)
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": PLACE}], tokenize=False, add_generation_prompt=True
        )
        self.after_prompt = rendered.partition(PLACE)[2]
        first = self._ids(self.after_prompt)[0]
        # a template that ends the user's turn with plain text (Tülu) is stopped by cutting that text
        self.prompt_stops = {self.end} | ({first} if first in tokenizer.added_tokens_decoder else set())

    def write(self, numbers: Sequence[int]) -> list[Pair]:
        """A prompt and an answer for each number."""
        contexts = [self._context(number) for number in numbers]
        texts = self.tokenizer.apply_chat_template(
            [[*context, {"role": "user", "content": PLACE}] for context in contexts], tokenize=False
        )
        begun = [self._ids(text.partition(PLACE)[0]) for text in texts]
        prompts = [self._prompt(ids) for ids in self._continue(begun, "prompt", numbers, self.prompt_stops)]
        good = [i for i, prompt in enumerate(prompts) if prompt]
        asked = [[*contexts[i], {"role": "user", "content": prompts[i]}] for i in good]
        answers = [""] * len(prompts)
        if good:
            ids = prompt_ids_many(self.tokenizer, asked)
            written = self._continue(ids, "answer", [numbers[i] for i in good], {self.end})
            for i, answer in zip(good, written, strict=True):
                answers[i] = self._text(answer[:-1]) if answer[-1:] == [self.end] else ""
        return list(zip(prompts, answers, strict=True))

    def _context(self, number: int) -> list[dict[str, str]]:
        # Examples of one source, so that the next turn is of their kind.
        generator = np.random.default_rng(draw_seed(self.settings["seed"], "examples", number))
        sizes = np.array([len(rows) for rows in self.by_source])
        rows = self.by_source[int(generator.choice(len(sizes), p=sizes / sizes.sum()))]
        size = min(self.settings["examples_in_context"], len(rows))
        chosen = generator.choice(len(rows), size, replace=False)
        return [turn for i in chosen for turn in _turns(rows[int(i)])]

    def _continue(
        self, prompts: list[list[int]], what: str, numbers: Sequence[int], stops: set[int]
    ) -> list[list[int]]:
        seeds = [draw_seed(self.settings["seed"], what, number) for number in numbers]
        limit, temperature = self.settings["max_new_tokens"], self.settings["sampling_temperature"]
        if what == "prompt":
            limit = max(limit, self.settings["max_length"])  # prompts are not as short as answers
        texts = generate(self.model, self.tokenizer, prompts, limit, temperature, seeds, ROWS_AT_ONCE, stops)
        self.read += sum(map(len, prompts))
        self.written += sum(map(len, texts))
        return texts

    def _prompt(self, ids: list[int]) -> str:
        """The user's turn as text; empty where the teacher did not end it as the template does."""
        if ids and ids[-1] in self.prompt_stops:
            starts_answer = self._ids(self.after_prompt)[0] == ids[-1]
            text = self.tokenizer.decode(ids[:-1]) + (self.after_prompt if starts_answer else "")
        else:
            text = self.tokenizer.decode(ids)
        prompt, ending, _ = text.partition(self.after_prompt)
        return self._text(self._ids(prompt)) if ending else ""

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _text(self, ids: list[int]) -> str:
        special = any(token in self.tokenizer.added_tokens_decoder for token in ids)
        return "" if special else self.tokenizer.decode(ids).strip()


class _Judge:
    """Which rows are kept; counts each rejection under its first reason."""

    def __init__(self, max_length: int, human: set[str], heldout: set[str]) -> None:
        self.max_length, self.human, self.heldout = max_length, human, heldout
        self.rejected: Counter[str] = Counter()
        self.rows: set[str] = set()
        self.prompts: set[str] = set()

    def keeps(self, pair: Pair, row: Any) -> bool:
        """Whether this prompt and answer become a row; `row` is their rendering, None where malformed."""
        reason = self._reason(pair, row)
        if reason:
            self.rejected[reason] += 1
            return False
        self.rows.add(row_hash(_turns(pair)))
        self.prompts.add(prompt_hash(_turns(pair)))
        return True

    def _reason(self, pair: Pair, row: Any) -> str:
        if not all(pair):
            return "malformed answer" if pair[0] else "malformed prompt"
        prompt = prompt_hash(_turns(pair))
        if row.truncated:
            return "too long"
        if prompt in self.heldout:
            return "held-out prompt"
        if prompt in self.human:
            return "copy of a human row"
        return "repeat" if row_hash(_turns(pair)) in self.rows else ""


def _turns(pair: Pair) -> list[dict[str, str]]:
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def _human_pairs(inputs: Mapping[str, Path]) -> dict[str, list[Pair]]:
    """First prompt and answer of the cell's own training rows, by source."""
    numbers = load_from_disk(inputs["subset"] / "train")["row"]
    table = pq.read_table(inputs["mixture"] / "train.parquet", columns=["messages", "source"])
    pairs: dict[str, list[Pair]] = {}
    for row in table.take(list(numbers)).to_pylist():
        turns = [turn for turn in row["messages"] if turn["role"] != "system"]
        pairs.setdefault(row["source"], []).append((turns[0]["content"], turns[1]["content"]))
    return pairs
