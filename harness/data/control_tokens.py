"""Control tokens inside texts: what opens and closes turns in a chat template never does so from within a message.

A tokenizer maps `<|im_end|>` to the control token wherever it stands, so a message that speaks of the mark would end
its own turn. Such a message is cut inside the mark before it is rendered, and the pieces are tokenised apart: the ids
decode to the same text, and none of them is the control token. Messages without a mark are not touched.

Marks are the tokenizer's special tokens, the added tokens that its template writes around messages, and the roles that
a template writes as plain text (`<|user|>` of Tülu 3), which are cut between all characters. The marks of reasoning
(`reasoning.py`) are none: an answer may have its own.

    marks_of(tokenizer).count(messages)          # Counter({"<|im_end|>": 1})
    split("The mark <" + CUT + "|im_end|>")      # ["The mark <", "|im_end|>"]
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from harness.data.reasoning import CHANNEL, MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT = "\ufdd0\ufdd1\ufdd0\ufdd1"
"""Where a text is cut: code points that Unicode sets aside for a program's own use, so no text has them."""
ROLE_MARK = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]")
"""How templates write a role as plain text: `<|user|>`, `[INST]`."""
PROBE = (
    {"role": "system", "content": "SYSTEM"},
    {"role": "user", "content": "USER"},
    {"role": "assistant", "content": "ANSWER"},
    {"role": "user", "content": "USER"},
)


@dataclass(frozen=True)
class Marks:
    """The marks of one tokenizer and its template."""

    tokens: frozenset[str]
    """Marks that are one token each."""
    plain: frozenset[str]
    """Marks that the template writes as plain text."""
    has_channels: bool = False
    """Whether answers name their channels with control tokens (gpt-oss), so that an answer may begin with them."""

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # the longest first: a mark may be the beginning of another
        marks = sorted(self.tokens | self.plain, key=lambda mark: (-len(mark), mark))
        return re.compile("|".join(map(re.escape, marks))) if marks else None

    @cached_property
    def _starts(self) -> re.Pattern[str] | None:
        # looks ahead, so that a mark which begins inside another is found too
        return re.compile(f"(?=({self._pattern.pattern}))") if self._pattern else None

    def count(self, messages: Sequence[Mapping[str, str]]) -> Counter[str]:
        """How often each mark stands in the texts of a conversation."""
        found: Counter[str] = Counter()
        for message in messages:
            if self._pattern and not self._is_channelled(message):
                found.update(self._pattern.findall(message["content"]))
        return found

    def cut(self, text: str) -> str:
        """The text with `CUT` inside every mark; the text itself where it has none."""
        if not self._pattern or not self._starts or not self._pattern.search(text):
            return text
        places = set()
        for found in self._starts.finditer(text):
            start, mark = found.start(), found[1]
            # after its first character no token can begin there any more
            places |= set(range(start + 1, start + len(mark))) if mark in self.plain else {start + 1}
        edges = [0, *sorted(places), len(text)]
        return CUT.join(text[start:end] for start, end in pairwise(edges))

    def cut_messages(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The conversation with every text cut; the same object where none has a mark."""
        texts = [one["content"] if self._is_channelled(one) else self.cut(one["content"]) for one in messages]
        if all(text == one["content"] for text, one in zip(texts, messages, strict=True)):
            return messages
        return [{**one, "content": text} for text, one in zip(texts, messages, strict=True)]

    def _is_channelled(self, message: Mapping[str, str]) -> bool:
        return self.has_channels and message["role"] == "assistant" and message["content"].startswith(CHANNEL)


_known: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[object, int], Marks]]" = WeakKeyDictionary()


def marks_of(tokenizer: "PreTrainedTokenizerBase") -> Marks:
    """The marks of a tokenizer under its present chat template."""
    state = (str(tokenizer.chat_template), len(tokenizer))
    if tokenizer in _known and _known[tokenizer][0] == state:
        return _known[tokenizer][1]
    added = tokenizer.added_tokens_decoder.values()
    written = _written(tokenizer)
    tokens = {str(token) for token in added if token.special or str(token) in written}
    tokens |= {str(token) for token in tokenizer.all_special_tokens}
    # a mark of one character cannot be cut
    tokens = {token for token in tokens if len(token) > 1 and token not in MARKS}
    plain = {mark for mark in ROLE_MARK.findall(written) if mark not in MARKS and mark not in tokens}
    marks = Marks(
        frozenset(tokens), frozenset(plain - {str(token) for token in added}), CHANNEL in tokenizer.get_added_vocab()
    )
    _known[tokenizer] = (state, marks)
    return marks


def split(text: str) -> list[str]:
    """The pieces of a text that are tokenised apart."""
    return text.split(CUT)


def drops_system(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the template leaves a system turn out without refusing it."""
    try:
        return PROBE[0]["content"] not in _rendered(tokenizer, PROBE[:2])
    except TemplateError:
        return False


def _written(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the template writes around messages; empty where there is none, or it rejects plain conversations."""
    if not tokenizer.chat_template:
        return ""
    texts = []
    # a template may reject a system turn, or one that is not the first
    for probe in (PROBE, PROBE[1:]):
        try:
            texts.append(_rendered(tokenizer, probe))
        except TemplateError:
            continue
    return "\n".join(texts)


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]) -> str:
    return str(
        tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=False, add_generation_prompt=True)
    )
