"""Vocabularies: which token ids mean the same in two tokenizers, from their files alone.

Two tokenizers share a vocabulary where model (tokens and merges), normaliser and pre-tokeniser agree, and every added
token that both have has one id. Either may have added tokens of its own, as open-instruct's Tülu 3 models have `<pad>`
beside the tokens of Llama 3.1; output layers may be padded beyond the tokens by any amount. Neither torch nor
transformers is imported.

    one, other = vocabulary_of_json(text), vocabulary_of_json(other_text)
    one.difference(other)        # None: they share a vocabulary
    other.missing_from(one)      # {128256: "<pad>"}
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RULES = {"model": "tokens or merges", "normalizer": "normaliser", "pre_tokenizer": "pre-tokeniser"}
"""Parts of a tokenizer.json that decide the ids of plain text, and what a refusal calls them."""


@dataclass(frozen=True)
class Vocabulary:
    """What the token ids of one tokenizer mean."""

    rules: Mapping[str, str]
    """sha256 of each of the `RULES`."""
    added: Mapping[str, int]
    """Ids by text of the added tokens that are not tokens of the model."""

    def difference(self, other: "Vocabulary") -> str | None:
        """What keeps the two from sharing a vocabulary, as a phrase; None where they share one."""
        different = [name for part, name in RULES.items() if self.rules[part] != other.rules[part]]
        if different:
            return f"their {' and '.join(different)} differ"
        for text, number in self.added.items():
            if other.added.get(text, number) != number:
                return f"the token {text} has the id {number} in one and {other.added[text]} in the other"
        return None

    def missing_from(self, other: "Vocabulary") -> dict[int, str]:
        """Added tokens, text by id, that the other does not have."""
        return {number: text for text, number in self.added.items() if text not in other.added}


def vocabulary_of_json(text: str) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`.

    The text goes through the `tokenizers` library first, so that files which leave defaults out and files which spell
    them mean the same. Whether an added token is called special is left out, as are padding, truncation, decoding and
    what is put around a single text: they do not touch the ids of rendered chats.
    """
    from tokenizers import Tokenizer

    values = json.loads(Tokenizer.from_str(text).to_str())
    rules = {part: hashlib.sha256(json.dumps(values.get(part), sort_keys=True).encode()).hexdigest() for part in RULES}
    tokens = values["model"].get("vocab") or {}
    # a Unigram model lists its tokens with their scores, in the order of their ids
    known = tokens if isinstance(tokens, dict) else {token: place for place, (token, _) in enumerate(tokens)}
    added = {token["content"]: token["id"] for token in values.get("added_tokens") or []}
    return Vocabulary(rules, {text: number for text, number in added.items() if known.get(text) != number})


def vocabulary_of_folder(folder: Path) -> Vocabulary | None:
    """The vocabulary of a folder's tokenizer.json; None where the folder has only other tokenizer files."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    return _vocabulary_of_file(str(file), file.stat().st_mtime_ns, file.stat().st_size)


@functools.lru_cache(maxsize=64)
def _vocabulary_of_file(path: str, mtime_ns: int, size: int) -> Vocabulary:
    return vocabulary_of_json(Path(path).read_text(encoding="utf-8"))
