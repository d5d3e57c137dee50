"""Reasoning and answer: a thinking model writes its reasoning before its answer, between marks of its family.

Reasoning is no part of an answer: it is removed before an answer is graded, and where `method.rationale=strip` before
it is trained. A generation prompt may begin the reasoning itself (DeepSeek R1, Qwen 3.5): then what follows it is
reasoning up to the closing mark. Reasoning that is begun and not ended leaves no answer. Texts without such marks are
left as they are.

    answer_of("<think>12 + 30 is 42.</think>\n\n42")           # "42"
    answer_of("12 + 30 is", prompt="<|assistant|><think>\n")    # None: the reasoning has no end
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLOSING = {
    "<think>": "</think>",  # Qwen 3, DeepSeek R1, SmolLM3, GLM-4.5, Nemotron
    "<thought>": "</thought>",  # EXAONE Deep
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "[THINK]": "[/THINK]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
    "<|channel>": "<channel|>",  # Gemma 4
}
"""The marks around reasoning: what ends it, by what begins it."""
CHANNEL, FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""gpt-oss writes each part of its turn to a named channel; the answer is in the channel `final`."""
MARKS = (*CLOSING, *CLOSING.values(), CHANNEL)
TAIL_TOKENS = 32
"""Tokens at the end of a prompt that hold the mark and the white space after it, also where each is one character."""


def answer_of(text: str, prompt: str = "") -> str | None:
    """The answer after the reasoning at the head of `text`; None where reasoning was begun and not ended.

    `prompt`: what stands before the text, or its end; it may begin the reasoning. A closing mark without an opening
    one ends reasoning that a prompt began. Marks inside an answer are text.
    """
    if text.lstrip().startswith(CHANNEL):
        _, found, answer = text.rpartition(FINAL)
        return answer.partition("<|")[0] if found else None
    opened, answer = opened_by(prompt) or _begun(text), text
    if opened is None:
        for opening, closing in CLOSING.items():
            before, closed, after = text.partition(closing)
            if closed and opening not in before:
                return _after_mark(after)
        return text
    # a model may begin once more what its prompt began, or reason in several parts
    while opened:
        _, closed, answer = answer.partition(CLOSING[opened])
        if not closed:
            return None
        opened = _begun(answer)
    return _after_mark(answer)


def opened_by(prompt: str) -> str | None:
    """The mark with which a prompt begins the reasoning, white space after it aside; None where it begins none."""
    return next((mark for mark in CLOSING if prompt.rstrip().endswith(mark)), None)


def prompt_end(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int]) -> str:
    """The end of a prompt (ids) as text, long enough for `answer_of` and `opened_by`."""
    return str(tokenizer.decode(list(prompt[-TAIL_TOKENS:])))


def decoded_answer(tokenizer: "PreTrainedTokenizerBase", answer: Sequence[int], prompt: str) -> str | None:
    """The answer (ids, without its end-of-turn token) as text, without reasoning and special tokens.

    None where reasoning was begun and not ended. `prompt` as in `answer_of`.
    """
    text = str(tokenizer.decode(list(answer), skip_special_tokens=True))
    whole = str(tokenizer.decode(list(answer)))
    # some families' marks are special tokens, which are gone from `text`
    if not any(mark in whole and mark not in text for mark in MARKS):
        return answer_of(text, prompt)
    found = answer_of(whole, prompt)
    if found is None:
        return None
    for special in tokenizer.all_special_tokens:
        found = found.replace(str(special), "")
    return found


def _begun(text: str) -> str | None:
    """The mark that a text begins with."""
    return next((mark for mark in CLOSING if text.lstrip().startswith(mark)), None)


def _after_mark(text: str) -> str:
    """The text without the white space that a closing mark is followed by; the first line keeps its indentation."""
    head = text[: len(text) - len(text.lstrip())]
    return text[head.rfind("\n") + 1 :] if "\n" in head else text[len(head) :]
