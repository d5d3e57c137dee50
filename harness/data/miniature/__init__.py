"""The miniature world: small tasks with known answers, drawn in seconds, that behave like a real corpus.

Twelve general sources, a scarce domain of two (the clinic) and a canary. Every answer is true by
construction, annotators err in known ways, and some facts have changed since they wrote. It is a working
model of the mechanism, not evidence about large models. `harness/data/corpora/mini.py` offers it as rows.

    facts.py      the names there are and what is true of them in one draw of the world
    sources.py    kinds of prompts: phrasings, operands, the true answer, what is held out
    reading.py    from the words of a prompt back to what it asks
    errors.py     how annotators get answers wrong, and how they word them
    lines.py      raw question and answer lines that bases are pre-trained on
    tokenizer.py  vocabulary, marks and chat template of each family of minis
    sizes.py      shapes of the mini models and their pre-training budgets
"""

import hashlib
import random

VERSION = 1
"""Raised whenever the same settings would draw other rows, lines or tokens."""


def generator(*parts: object) -> random.Random:
    """A generator seeded by the sha256 of its parts: the same draws in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def digest(*parts: object) -> str:
    """The sha256 (hex) of the parts, to order or split things the same way everywhere."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()
