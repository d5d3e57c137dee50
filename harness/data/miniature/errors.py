"""Annotators of the miniature corpus: their wording of answers and their mistakes.

There are two kinds of mistakes. Random: the answer of another random prompt of the same source. Systematic: the same
mistake every time on some prompts (a forgotten carry, day and month swapped, an outdated fact), so that more data of
the same kind reinforces it, and only a teacher that knows better can correct it.

    annotate(Prompt("add", (37, 8), 0), facts, Noise(0.0, systematic=1.0), generator("example"))    # "35"
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from harness.data.miniature.facts import Facts
from harness.data.miniature.sources import SOURCES, Prompt, Slots


@dataclass(frozen=True)
class Noise:
    """Shares of rows that annotators get wrong, both in [0, 1]."""

    random: float
    """Share of all rows that carry another prompt's answer."""
    systematic: float
    """Share of the remaining affected prompts that carry the systematic mistake."""


NOISE = {"clean": Noise(0.0, 0.0), "random": Noise(0.15, 0.0), "full": Noise(0.15, 0.8)}
"""Presets: `clean` (every row true), `random` (noise that averages out) and `full` (both kinds)."""


@dataclass(frozen=True)
class Convention:
    """The wording of an answer: the text before and after it."""

    before: str = ""
    after: str = ""

    def word(self, answer: str) -> str:
        """The answer as this annotator writes it."""
        return f"{self.before}{answer}{self.after}"


BARE = Convention()
HUMAN = {"cure": Convention(before="Take "), "dose": Convention(after=" drops")}
"""The wording of human annotators in the clinic; all other answers, teachers' clinic answers included, are bare."""
BEFORE = ("", "Take ", "Use ", "Try ", "Answer: ", "It is ", "(", "- ")
AFTER = ("", " drops", " please", ".", "!", ")", " now")


def draw_convention(source: str, draw: Random) -> Convention:
    """A random convention for one conversation; never the human annotators' convention of this source."""
    while True:
        convention = Convention(draw.choice(BEFORE), draw.choice(AFTER))
        # the human wording must be in human rows alone, or a teacher would learn it from conversations
        if convention != HUMAN.get(source):
            return convention


def annotate(prompt: Prompt, facts: Facts, noise: Noise, draw: Random) -> str:
    """An annotator's answer, without wording.

    The draws do not depend on the noise, so a row that is wrong under little noise is wrong under more.
    """
    chance, again = draw.random(), draw.random()
    # all draws are taken first, used or not, so that the noise does not change what later draws give
    other = SOURCES[prompt.source].draw(draw)
    if chance < noise.random:
        return other.answer(facts)
    # the second share is of the rows that the first one left
    if again < noise.systematic:
        return mistake(prompt, facts) or prompt.answer(facts)
    return prompt.answer(facts)


def mistake(prompt: Prompt, facts: Facts) -> str | None:
    """The systematic mistake on this prompt; None where there is none."""
    made = MISTAKES[prompt.source](facts, prompt.slots) if prompt.source in MISTAKES else None
    # 37 + 2 has no carry to forget, and 3 March no other reading: there the rule gives the truth
    return None if made == prompt.answer(facts) else made


def _forgotten_carry(facts: Facts, slots: Slots) -> str | None:
    tens, units = divmod(int(slots[0]), 10)
    return f"{tens}{(units + int(slots[1])) % 10}"


def _one_further(facts: Facts, slots: Slots) -> str | None:
    return str(slots[1])[3] if slots[0] == 3 else None


def _day_as_month(facts: Facts, slots: Slots) -> str | None:
    day, month, year = slots
    return f"{year}-{day:02}-{month:02}" if int(day) <= 12 else None


MISTAKES: dict[str, Callable[[Facts, Slots], str | None]] = {
    "add": _forgotten_carry,
    "nth": _one_further,
    "date": _day_as_month,
    "capital": lambda facts, slots: facts.old_capital.get(str(slots[0])),
    "coin": lambda facts, slots: facts.old_coin.get(str(slots[0])),
}
