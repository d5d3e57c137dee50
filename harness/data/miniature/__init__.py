"""The miniature corpus: small tasks with known answers, generated in seconds, that behave like a real corpus.

Twelve general sources, a scarce domain of two (the clinic) and a canary. Every answer is true by construction,
annotators err in known ways, and some facts have changed since the annotators wrote. It models the mechanism; it is no
evidence about large models. A world seed draws the facts: another seed is another replicate of the corpus.
`harness/data/corpora/mini.py` offers it as rows.

    facts.py      invented names, and the facts about them that a world seed draws
    sources.py    kinds of prompts: phrasings, operands, the true answer, what is held out
    reading.py    parses the words of a prompt back to what it asks
    errors.py     the annotators' mistakes and wording
    lines.py      raw question and answer lines on which bases are pre-trained
    tokenizer.py  vocabulary, marks and chat template of each family of minis
    sizes.py      shapes of the mini models and their pre-training budgets
"""

import hashlib
import random

VERSION = 1
"""To be raised whenever the same settings would draw other rows, lines or tokens."""


def generator(*parts: object) -> random.Random:
    """A generator seeded by the sha256 of its parts: the same draws in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def digest(*parts: object) -> str:
    """The sha256 (hex) of the parts, for orders and splits that are the same everywhere."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()
