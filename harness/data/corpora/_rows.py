"""Rows of instruction data: the allowed form of a conversation, and the hashes that identify rows.

`_files.py` reads rows; this file checks them. A conversation is an optional system turn, then user and assistant
alternately, ending with the assistant: every chat template renders this form. A prompt alone ends with the user.

    bad_turns([{"role": "user", "content": "Add 3 and 4."}])       # "the assistant's turn is missing"
    prompt_hash(messages)    # equal for "Add 3 and 4." and " add 3  and 4."
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from harness.config.checks import SettingsError, refuse

ROLES = ("system", "user", "assistant")
HASH_DIGITS = 32  # 128 bits
UNANSWERED = ("the assistant's turn is missing", "the last turn is not the assistant's")
"""Problems of a prompt alone where answers are required."""


def prompt_hash(messages: Sequence[Mapping[str, str]]) -> str:
    """Hash (32 hex digits) of the first user turn, after NFKC, casefold and squeezed whitespace.

    Rows that share it are on the same side of every split. It covers the first turn alone, so the branches of one
    dialogue tree, and one prompt under two system turns, stay together.
    """
    first = next(message["content"] for message in messages if message["role"] == "user")
    return _digest(_folded(first))


def whole_prompt_hash(messages: Sequence[Mapping[str, str]]) -> str:
    """The same of every turn before the last answer; equal to `prompt_hash` where that is one user turn."""
    prompt = messages[:-1] if is_answered(messages) else messages
    if len(prompt) == 1:
        return prompt_hash(messages)
    # JSON escapes what could make two different lists of turns one text
    return _digest(json.dumps([[turn["role"], _folded(turn["content"])] for turn in prompt]))


def row_hash(messages: Sequence[Mapping[str, str]]) -> str:
    """Hash (32 hex digits) of every turn's role and exact text; equal only for exact repeats."""
    # JSON escapes what could make two different lists of turns one text
    turns = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(turns.encode()).hexdigest()[:HASH_DIGITS]


def plain_turns(messages: Any) -> list[dict[str, str]]:
    """The turns with role and content alone, of messages in which `bad_turns` finds no problem."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


def is_answered(messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether a conversation ends with an answer."""
    return messages[-1]["role"] == "assistant"


def without_answers(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The turns before the first answer; all turns of a conversation that ends with the user's."""
    if not is_answered(messages):
        return list(messages)
    return list(takewhile(lambda turn: turn["role"] != "assistant", messages))


def bad_turns(messages: Any, answered: bool = True) -> str:
    """The problem of a conversation in a few words, or "" where it has none.

    `answered=False` allows it to end with the user's turn.
    """
    if not isinstance(messages, list) or not messages:
        return "no messages"
    for turn in messages:
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            return "a message without role or content"
        if turn["role"] not in ROLES:
            return "a role other than system, user, assistant"
        if not isinstance(turn["content"], str) or not turn["content"].strip():
            return "empty content"
        if not _encodable(turn["content"]):
            return "not UTF-8"
    roles = [turn["role"] for turn in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    # prompts alone are named first, because these problems have a way out of their own (`UNANSWERED`)
    if answered and "assistant" not in turns:
        return UNANSWERED[0]
    if answered and turns[-1] != "assistant":
        return UNANSWERED[1]
    if not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        return "user and assistant do not take turns"
    return ""


def count_or_refuse(on_bad_row: str, dropped: Counter[str], where: str, problem: str, way_out: str = "") -> None:
    """Count a bad row in `dropped`, or raise SettingsError with its file and position, by the setting `on_bad_row`.

    `way_out` names one more remedy.
    """
    if on_bad_row == "refuse":
        raise SettingsError(
            f"{where} cannot be used: {problem}; correct the row, or set "
            f"corpus.on_bad_row=drop to count and skip such rows{way_out}."
        )
    dropped[problem] += 1


def nothing_to_score() -> SettingsError:
    """The error for a corpus in which no row has an answer."""
    return refuse(
        "corpus.answers",
        "none",
        "no row of the corpus has an answer, so there is nothing to score a model on",
        "add some rows with an answer (corpus.heldout_rows says how many at most): they are held out, never trained on",
    )


def _folded(text: str) -> str:
    # NFKC leaves ASCII as it is, and most prompts are ASCII
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(folded.casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _encodable(text: str) -> bool:
    """False for lone surrogates, which JSON escapes can express and UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
