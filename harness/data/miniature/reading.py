"""Parses the words of a prompt back to its source and slots, so that the truth of any prompt is known.

The inverse of `Prompt.text` in `sources.py`: prompts that the corpus did not draw, e.g. a teacher's, can be verified
too. Text that is no prompt of the miniature, or asks about an unknown name, gives None.

    read_prompt("Sum of 37 and 8?")      # Prompt("add", (37, 8), 2)
"""

import re
from functools import lru_cache

from harness.data.miniature import generator
from harness.data.miniature.sources import CANARY, MONTHS, SOURCES, UNITS, Prompt, PromptSource, Slots

FIELD = re.compile(r"\{(\d*)\}")


def read_prompt(text: str) -> Prompt | None:
    """The prompt with these words, or None; prompts of the canary, whose answers no teacher may know, give None."""
    # a teacher may write other white space than the phrasing has
    text = " ".join(text.split())
    for name, source in SOURCES.items():
        if name == CANARY:
            continue
        for phrasing, (pattern, order) in enumerate(_patterns(name)):
            match = pattern.fullmatch(text)
            if match is None:
                continue
            shown = [""] * len(order)
            # a phrasing may show its values in another order (`How many {1} are {2} {0}?`)
            for place, value in zip(order, match.groups(), strict=True):
                shown[place] = value
            slots = _slots(source, tuple(int(value) if value.isdecimal() else value for value in shown))
            # written back and compared: `007` is a number to the pattern, and in no prompt of the corpus
            if slots is not None and Prompt(name, slots, phrasing).text == text:
                return Prompt(name, slots, phrasing)
    return None


def _slots(source: PromptSource, shown: Slots) -> Slots | None:
    """The slots that give these shown values; None for values that the source never shows."""
    slots: Slots | None = shown
    if source.name == "date":
        # prompts show the month by name and the slots hold its number
        slots = (shown[0], MONTHS.index(str(shown[1])) + 1, shown[2]) if shown[1] in MONTHS else None
    elif source.name == "unit":
        factors = {(large, small): factor for large, small, factor in UNITS}
        # the factor is a slot that no prompt shows; it follows from the two units
        factor = factors.get((str(shown[0]), str(shown[1])))
        slots = None if factor is None else (shown[0], shown[1], factor, shown[2])
    elif source.name == "nth" and not 1 <= int(shown[0] if isinstance(shown[0], int) else 0) <= len(str(shown[1])):
        slots = None
    if slots is None or source.is_fact:
        return slots if slots in source.keys else None
    return slots if [type(value) for value in slots] == _kinds(source.name) else None


@lru_cache(maxsize=len(SOURCES))
def _kinds(name: str) -> list[type]:
    """Whether each operand of a skill is a number or text."""
    operands = SOURCES[name].operands
    assert operands is not None
    return [type(value) for value in operands(generator("mini", "kinds"))]


@lru_cache(maxsize=len(SOURCES))
def _patterns(name: str) -> list[tuple[re.Pattern[str], list[int]]]:
    """For each phrasing a pattern of its words, and the index of the shown value that each group matches."""
    found = []
    for phrasing in SOURCES[name].phrasings:
        numbers = FIELD.findall(phrasing)
        order = [int(number) if number else place for place, number in enumerate(numbers)]
        # the fields are cut out first, because `re.escape` would escape their braces
        words = [re.escape(part) for part in FIELD.sub("\0", phrasing).split("\0")]
        found.append((re.compile(r"(\w+)".join(words)), order))
    return found
