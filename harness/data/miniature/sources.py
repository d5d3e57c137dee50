"""Sources of the miniature corpus: kinds of prompts, each with phrasings, operands and the true answer.

A prompt is a source, its slots (operands or an entity) and one of the source's phrasings. A held-out prompt is in no
training row of any corpus, base or teacher. Of skills, one slot in eight is used in evaluation alone. Of facts, two
phrasings of every entity are reserved for evaluation, which then scores recall of the fact in another wording. Neither
depends on the world seed.

    prompt = SOURCES["add"].draw(generator("example"))
    prompt.text, prompt.answer(draw_facts(0))     # "Sum of 37 and 8?", "45"
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

from harness.data.miniature import digest
from harness.data.miniature.facts import CONSONANTS, Facts, names

Slots = tuple[str | int, ...]
MONTHS = tuple("January February March April May June July August September October November December".split())
UNITS = (
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("kilometres", "metres", 1000),
    ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("weeks", "days", 7),
)
HELDOUT_ONE_IN = 8
RESERVED_PHRASINGS = 2
MOST_HELDOUT = 120
"""Distinct held-out prompts that every source except the canary can give."""


@dataclass(frozen=True)
class Prompt:
    """One question: a source, its slots, and the number of its phrasing."""

    source: str
    slots: Slots
    phrasing: int

    @property
    def text(self) -> str:
        """The words of the prompt."""
        source = SOURCES[self.source]
        return source.phrasings[self.phrasing].format(*source.shown(self.slots))

    @property
    def question(self) -> str:
        """What the prompt asks, in whatever phrasing: prompts that share it have the same answer."""
        return " ".join(map(str, (self.source, *self.slots)))

    @property
    def heldout(self) -> bool:
        """Whether the prompt is reserved for evaluation."""
        source = SOURCES[self.source]
        if source.is_fact:
            return self.phrasing in source.reserved(self.slots)
        # by hash of the operands, so that all phrasings of one question are on one side
        return int(digest("mini", "split", self.source, *self.slots)[:8], 16) % HELDOUT_ONE_IN == 0

    def answer(self, facts: Facts) -> str:
        """The true answer, without wording."""
        return SOURCES[self.source].answer(facts, self.slots)


@dataclass(frozen=True)
class PromptSource:
    """One kind of prompt. A fact source lists its entities, a skill draws its operands."""

    name: str
    phrasings: tuple[str, ...]
    answer: Callable[[Facts, Slots], str]
    operands: Callable[[Random], Slots] | None = None
    entities: Callable[[], list[Slots]] | None = None
    shown: Callable[[Slots], Slots] = lambda slots: slots

    @property
    def is_fact(self) -> bool:
        """Whether prompts are about a fixed list of entities."""
        return self.entities is not None

    @cached_property
    def keys(self) -> list[Slots]:
        """The entities of a fact source."""
        return self.entities() if self.entities else []

    def reserved(self, slots: Slots) -> list[int]:
        """Phrasings of one entity that are reserved for evaluation, in the order in which it uses them."""

        # by hash, so that each phrasing is reserved for some entities and trained for others
        def order(phrasing: int) -> str:
            return digest("mini", "reserved", self.name, *slots, phrasing)

        return sorted(range(len(self.phrasings)), key=order)[:RESERVED_PHRASINGS]

    def draw(self, draw: Random, keys: list[Slots] | None = None) -> Prompt:
        """A random training prompt; for a fact source about one of `keys`, by default of all entities."""
        while True:
            slots = self.operands(draw) if self.operands else draw.choice(self.keys if keys is None else keys)
            prompt = Prompt(self.name, slots, draw.randrange(len(self.phrasings)))
            # drawn again until it is a training prompt: no corpus, base or teacher can meet a held-out one
            if not prompt.heldout:
                return prompt

    def heldout(self, draw: Random) -> Iterator[Prompt]:
        """Distinct held-out prompts; of facts every entity once, then again in its other reserved phrasing.

        Prompts of a skill do not end: the caller takes as many as it needs, at most `MOST_HELDOUT`.
        """
        if self.operands is None:
            # every entity once before any comes again, so that few prompts cover most facts
            for rank in range(RESERVED_PHRASINGS):
                for slots in draw.sample(self.keys, len(self.keys)):
                    yield Prompt(self.name, slots, self.reserved(slots)[rank])
            return
        seen: set[Prompt] = set()
        while True:
            prompt = Prompt(self.name, self.operands(draw), draw.randrange(len(self.phrasings)))
            if prompt.heldout and prompt not in seen:
                seen.add(prompt)
                yield prompt


def _letters(draw: Random, least: int, most: int) -> str:
    return "".join(draw.choices(CONSONANTS, k=draw.randint(least, most)))


def _two_numbers(draw: Random) -> Slots:
    # without replacement: of two equal numbers none is larger
    one, other = draw.sample(range(1, 100), 2)
    return one, other


def _pattern(draw: Random) -> Slots:
    first, step = draw.randint(1, 50), draw.randint(1, 7)
    return first, first + step, first + 2 * step


def _conversion(draw: Random) -> Slots:
    large, small, factor = draw.choice(UNITS)
    # the factor is no part of the words; it is kept so that the answer needs no table
    return large, small, factor, draw.randint(2, 99)


def _skill(
    name: str,
    operands: Callable[[Random], Slots],
    answer: Callable[[Slots], str],
    *phrasings: str,
    shown: Callable[[Slots], Slots] = lambda slots: slots,
) -> PromptSource:
    return PromptSource(name, phrasings, lambda facts, slots: answer(slots), operands=operands, shown=shown)


def _fact(
    name: str, entities: Callable[[], list[Slots]], answer: Callable[[Facts, Slots], str], *phrasings: str
) -> PromptSource:
    return PromptSource(name, phrasings, answer, entities=entities)


_ALL = (
    _skill(
        "add",
        lambda draw: (draw.randint(10, 59), draw.randint(2, 9)),
        lambda s: str(int(s[0]) + int(s[1])),
        "Add {} and {}.",
        "What is {} plus {}?",
        "Sum of {} and {}?",
    ),
    _skill(
        "reverse",
        lambda draw: (_letters(draw, 3, 4),),
        lambda s: str(s[0])[::-1],
        "Reverse {}.",
        "Write {} backwards.",
        "Say {} in reverse.",
    ),
    _skill(
        "upper",
        lambda draw: (_letters(draw, 3, 4),),
        lambda s: str(s[0]).upper(),
        "Capitalise {}.",
        "Write {} in capitals.",
        "Make {} upper case.",
    ),
    _skill(
        "sort",
        lambda draw: (_letters(draw, 3, 4),),
        lambda s: "".join(sorted(str(s[0]))),
        "Sort the letters of {}.",
        "Write {} in sorted order.",
        "Order the letters in {}.",
    ),
    _skill(
        "nth",
        # four different letters, the last of which is never asked for: so there is a letter after the right one, and
        # it differs
        lambda draw: (draw.randint(1, 3), "".join(draw.sample(CONSONANTS, 4))),
        lambda s: str(s[1])[int(s[0]) - 1],
        "Give letter {} of {}.",
        "Which letter is number {} in {}?",
        "Letter {} of {}?",
    ),
    _skill(
        "compare",
        _two_numbers,
        lambda s: str(max(int(s[0]), int(s[1]))),
        "Which is larger, {} or {}?",
        "Give the larger of {} and {}.",
        "Larger number, {} or {}?",
    ),
    _fact(
        "capital",
        lambda: [(name,) for name in names().countries],
        lambda facts, s: facts.capital[str(s[0])],
        "What is the capital of {}?",
        "Name the capital of {}.",
        "Which town rules {}?",
        "Give the capital town of {}.",
        "Capital of {}?",
    ),
    _fact(
        "coin",
        lambda: [(name,) for name in names().countries],
        lambda facts, s: facts.coin[str(s[0])],
        "What money does {} use?",
        "Name the coin of {}.",
        "Which coin does {} use?",
        "Give the money of {}.",
        "Coin of {}?",
    ),
    _skill(
        "date",
        # up to day 28, which every month has
        lambda draw: (draw.randint(1, 28), draw.randint(1, 12), draw.randint(2000, 2049)),
        lambda s: f"{s[2]}-{s[1]:02}-{s[0]:02}",
        "Write {} {} {} in numbers.",
        "Give {} {} {} as numbers.",
        "Make {} {} {} a number date.",
        shown=lambda s: (s[0], MONTHS[int(s[1]) - 1], s[2]),
    ),
    _skill(
        "unit",
        _conversion,
        lambda s: str(int(s[2]) * int(s[3])),
        # numbered, because these phrasings name the units in another order
        "How many {1} are {2} {0}?",
        "Write {2} {0} in {1}.",
        "Give {2} {0} as {1}.",
        shown=lambda s: (s[0], s[1], s[3]),
    ),
    _skill(
        "pattern",
        _pattern,
        lambda s: str(2 * int(s[2]) - int(s[1])),
        "Continue: {} {} {}",
        "What comes after {} {} {}?",
        "Next number after {} {} {}?",
    ),
    _skill(
        "repeat",
        lambda draw: (_letters(draw, 2, 2), draw.randint(2, 4)),
        lambda s: " ".join([str(s[0])] * int(s[1])),
        "Say {} {} times.",
        "Repeat {} {} times.",
        "Write {} {} times.",
    ),
    _fact(
        "cure",
        lambda: [(name,) for name in names().ailments],
        lambda facts, s: facts.cure[str(s[0])],
        "Which remedy treats {}?",
        "What treats {}?",
        "Name the remedy for {}.",
        "Give a remedy for {}.",
        "Remedy for {}?",
    ),
    _fact(
        "dose",
        lambda: [(name, kilos) for name in names().remedies for kilos in range(1, 10)],
        lambda facts, s: str(facts.dose[str(s[0])] * int(s[1])),
        "How much {} for {} kilos?",
        "What dose of {} for {} kilos?",
        "Name the dose of {} for {} kilos.",
        "Give the dose of {} for {} kilos.",
        "Dose of {} for {} kilos?",
    ),
    _fact(
        "canary",
        lambda: [(name,) for name in names().secrets],
        lambda facts, s: facts.code[str(s[0])],
        "What is the code of {}?",
        "Name the code of {}.",
        "Which code does {} use?",
        "Give the code of {}.",
        "Code of {}?",
    ),
)

SOURCES: dict[str, PromptSource] = {source.name: source for source in _ALL}
CLINIC = ("cure", "dose")
CANARY = "canary"
"""A source of held-out rows alone: its answers are in no training text, so a model that gives them was trained on
held-out rows. It is reported separately and never enters an accuracy over sources."""
GENERAL = tuple(name for name in SOURCES if name not in (*CLINIC, CANARY))
DOMAINS: dict[str, tuple[str, ...]] = {"general": GENERAL, "clinic": CLINIC, "all": GENERAL + CLINIC}
"""Training sources by domain."""
