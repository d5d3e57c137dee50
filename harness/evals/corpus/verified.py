"""Verified accuracy: greedy answers to held-out prompts, right or wrong by comparison with the truth.

The answer is generated from the same prompt ids as in training and ends at the end-of-turn token. It is right when
it equals the truth, or any member of one that is a list: as a number where both are numbers, else as text after Unicode
and white space are normalised; case counts (`data/truth.py`). A truth in GSM8K's form (`... #### 18`) is compared as
the number after `####`. Unlike `heldout.py` (likelihood) this needs the truth: rows
without one are left out and counted. An empty answer, or one that states no number where the truth is one, is wrong.
Reasoning is no part of an answer (`data/reasoning.py`); one that is cut within its reasoning is empty, and counted.

    accuracy = mean over items of [answer = truth]
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.data.chat import end_of_turn_id, prompt_ids_many
from harness.data.reasoning import decoded_answer, prompt_end
from harness.data.truth import alternatives, same, shown
from harness.evals import UNCLOSED, HeldoutRow, Item, Options, Score, Scored, scores_by_source
from harness.evals.grading.math_answers import final_number
from harness.models.generate import generate
from harness.runtime import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METRICS_OF_TRUTH = ("accuracy",)
ROWS_BETWEEN_REPORTS = 4  # batches


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[HeldoutRow],
    options: Options,
) -> Scored:
    """Generate a greedy answer to every row whose truth is known, and compare.

    Raises SettingsError where the tokenizer's chat template cannot render a row (see `data.chat.render_many`).
    """
    known = [row for row in rows if row.truth is not None]
    prompts = prompt_ids_many(tokenizer, [row.messages[:-1] for row in known])
    answers = _answers(model, tokenizer, prompts, options)
    stop = end_of_turn_id(tokenizer)
    items, unparsed, empty, unclosed = [], 0, 0, 0
    for row, prompt, answer in zip(known, prompts, answers, strict=True):
        assert row.truth is not None
        finished = bool(answer) and answer[-1] == stop
        found = decoded_answer(tokenizer, answer[:-1] if finished else answer, prompt_end(tokenizer, prompt))
        # nothing was generated where the prompt fills the context, so no reasoning was begun
        unclosed += found is None and bool(answer)
        text = found or ""
        right = verify(text, row.truth)
        empty += not text.strip()
        # an empty answer is counted as empty alone
        unparsed += right is None and bool(text.strip())
        items.append(
            Item(
                "verified",
                row.id,
                row.source,
                row.prompt_hash,
                prediction=text,
                target=shown(row.truth),
                score=float(right or False),
                truncated=not answer,
                hit_length_limit=not finished,
            )
        )
    counts = {
        "without_truth": len(rows) - len(known),
        "empty_answers": empty,
        "unparsed_answers": unparsed,
        UNCLOSED: unclosed,
        "hit_length_limit": sum(item.hit_length_limit for item in items),
    }
    return Scored(items, sum(map(len, prompts)), sum(map(len, answers)), counts)


def summary(items: Sequence[Item]) -> list[Score]:
    """`accuracy` for `all` and each source."""
    return scores_by_source("verified", "accuracy", items, lambda item: None if item.score is None else (item.score, 1))


def verify(answer: str, truth: str) -> bool | None:
    """Whether an answer is right; None where the truth is a final number and the answer states none.

    Of a truth with several members (`data/truth.py`) any is right.
    """
    found = [_equals(answer, one) for one in alternatives(truth)]
    return True if True in found else None if None in found else False


def _equals(answer: str, truth: str) -> bool | None:
    # the truth decides how both are read
    number = final_number(truth)
    if number is None:
        return same(answer, truth)
    given = final_number(answer)
    return None if given is None else given == number


def _answers(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: list[list[int]], options: Options
) -> list[list[int]]:
    """Greedy answers in the prompts' order; reports progress after every few batches of similar length."""
    # by length over all prompts, so that a part, and each batch in it, pads little
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    stride = ROWS_BETWEEN_REPORTS * options.batch_size
    for start in range(0, len(order), stride):
        part = order[start : start + stride]
        found = generate(
            model,
            tokenizer,
            [prompts[index] for index in part],
            options.max_new_tokens,
            temperature=0.0,
            batch_size=options.batch_size,
        )
        for index, answer in zip(part, found, strict=True):
            answers[index] = answer
        progress.report(start + len(part), len(order), note="answers")
    return answers
