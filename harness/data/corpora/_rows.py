"""Rows of instruction data: the allowed form of a conversation, and the hashes that identify rows.

`_files.py` reads rows; this file checks them. A conversation is an optional system turn, then user and assistant
alternately, ending with the assistant: every chat template renders this form. A prompt alone ends with the user.
Content is text, or parts of text, which are joined. A field that would change what is trained (`tool_calls`,
`reasoning_content`, a weight) and is not read makes a bad row; fields of other names are left out and counted.

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
MOST_CHARACTERS = 10_000_000
"""Characters of a row; a longer one would take minutes to tokenise, and no model reads it."""
CALLS = ("tool_calls", "function_call", "tool_call_id", "tools", "functions")
REASONING = ("reasoning_content", "reasoning", "thinking", "thoughts")
MEDIA = ("images", "image", "audio", "audios", "video", "videos", "documents")
WEIGHTS = ("weight", "train", "loss", "loss_mask", "loss_weight", "trainable", "training", "train_on_turn", "mask")
MEANINGFUL = (*CALLS, *REASONING, *MEDIA, *WEIGHTS, "name")
"""Fields of a message that change what is trained, none of which is read."""
ROW_WEIGHTS = ("weight", "sample_weight", "loss_weight", "train", "loss_mask")
MEANINGFUL_IN_ROW = (*CALLS, "reasoning_content", *MEDIA, *ROW_WEIGHTS)
"""The same of a row."""
BESIDE_PROMPT = ("input", "system", "system_prompt")
"""Fields of a row that are part of the prompt in other forms of data, where prompt and completion are columns."""
CONTEXT = ("context", "contexts", "history")
"""Fields of such a row that may be left out on purpose."""
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
    """The turns with role and content alone, of messages in which `bad_turns` finds no problem; parts are joined."""
    return [{"role": turn["role"], "content": _text(turn["content"])} for turn in messages]


def fields_left_out(messages: Any) -> set[str]:
    """Names of the fields of such messages that are not read; those without a value, or that say what holds anyway,
    aside."""
    return {
        name
        for turn in messages
        if len(turn) > 2  # most messages have role and content alone
        for name, value in turn.items()
        if name not in ("role", "content", *MEANINGFUL) and _given(value)
    }


def meaningful_field(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these fields that a row has with a value, its weights of one aside; "" where it has none."""
    return next((name for name in names if _given(values.get(name)) and not _is_one(name, values[name])), "")


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
    if messages is not None and not isinstance(messages, list):
        return f"its messages are {_kind(messages)}, not a list"
    if not messages:
        return "no messages"
    for turn in messages:
        if not isinstance(turn, Mapping):
            return "a message that is not an object with role and content"
        if "from" in turn and "value" in turn and "role" not in turn:
            return "a message with from and value (ShareGPT's form) in place of role and content"
        if "role" not in turn or ("content" not in turn and not meaningful_field(turn, CALLS)):
            return "a message without role or content"
        # before its content, which a message that calls tools may lack
        if name := _meaningful(turn):
            return f"a message has the field {name}, which is not read"
        if turn["role"] not in ROLES:
            return "a role other than system, user, assistant"
        if problem := _bad_content(turn.get("content")):
            return problem
    if sum(len(_text(turn["content"])) for turn in messages) > MOST_CHARACTERS:
        return f"longer than {MOST_CHARACTERS:,} characters"
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


def _meaningful(turn: Mapping[str, Any]) -> str:
    """The first field of a message that changes what is trained; "" where it has none."""
    if len(turn) == 2 and "content" in turn:
        return ""
    for name in MEANINGFUL:
        value = turn.get(name)
        # what every message has anyway: answers are trained, and no other turn
        as_ever = _is_one(name, value) if turn["role"] == "assistant" else name in WEIGHTS and value in (0, False)
        if _given(value) and not as_ever:
            return name
    return ""


def _given(value: Any) -> bool:
    """Whether a field has a value; False is one, null and what is empty are none."""
    return value is not None and not (isinstance(value, str | list | dict) and not value)


def _is_one(name: str, value: Any) -> bool:
    """Whether a weight says what holds without it; of a mask, families disagree what 1 means."""
    return name in (*WEIGHTS, *ROW_WEIGHTS) and name != "mask" and isinstance(value, bool | int | float) and value == 1


def _bad_content(content: Any) -> str:
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, Mapping):
                return f"content has a part that is {_kind(part)}, not an object of type text"
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                return f"content has a part of type {str(part.get('type'))[:40]!r}, which is not read"
    elif content is not None and not isinstance(content, str):
        return f"content is {_kind(content)}, not text"
    text = _text(content)
    if not text.strip():
        return "empty content"
    return "" if encodable(text) else "not UTF-8"


def _text(content: Any) -> str:
    """The text of a content: itself, or its parts one after another."""
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if isinstance(value, bool):
        return "true or false"
    kinds = ((str, "text"), (int | float, "a number"), (list, "a list"), (Mapping, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def _folded(text: str) -> str:
    # NFKC leaves ASCII as it is, and most prompts are ASCII
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(folded.casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def encodable(text: str) -> bool:
    """False for lone surrogates, which JSON escapes can express and UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
