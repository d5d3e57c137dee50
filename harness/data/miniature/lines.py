"""Pre-training lines: questions and answers as raw text, in many layouts and never in the chat format.

A base trained on them (loss on the answer only) has the skills and some of the facts, and learns the chat format from
instruction rows, as a real pre-trained model does. All answers are right, and no prompt is a held-out one. Unlike rows
of `corpora/mini.py` lines have no source, no noise and no conversation.

    next(pretraining_lines(0, knows="half", count=1, seed=0))     # ("Q: Add 37 and 8.\\nA: ", "45\\n")
"""

from collections.abc import Iterator
from functools import lru_cache

from harness.config.checks import check_choice
from harness.data.miniature import generator
from harness.data.miniature.facts import draw_facts
from harness.data.miniature.sources import DOMAINS, SOURCES, Prompt, Slots

KNOWS = ("half", "all")
HEADS = ("", "Q: ", "? ", "- ", "1. ", "2. ", "3. ", "Question: ", "* ", "> ", "# ", "Task: ", "(a) ", "Ask: ")
TAILS = ("\n", " - ", "\nA: ", " = ")


def layouts() -> list[tuple[str, str]]:
    """The texts before and after a question: all 56 pairs."""
    return [(head, tail) for head in HEADS for tail in TAILS]


def pretraining_lines(world_seed: int, knows: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield `count` pairs (text before the answer, answer up to its newline).

    `knows="half"` (students): the general sources, and half of their facts. `knows="all"` (teachers): every current
    fact, and the clinic. The loss covers the answer alone, so tokenise the two texts separately. Raises SettingsError
    for another value of `knows`.
    """
    check_choice("knows", knows, KNOWS)
    facts = draw_facts(world_seed)
    # a student's base knows nothing of the clinic, whose facts it can get from rows or a teacher alone
    sources = DOMAINS["general" if knows == "half" else "all"]
    known = _known(world_seed, knows)
    draw = generator("mini", "lines", world_seed, knows, seed)
    every_layout = layouts()
    for _ in range(count):
        source = draw.choice(sources)
        head, tail = draw.choice(every_layout)
        # `draw` gives no held-out prompt; a skill has no list of entities, so None
        prompt = SOURCES[source].draw(draw, known.get(source))
        yield f"{head}{prompt.text}{tail}", f"{prompt.answer(facts)}\n"


@lru_cache(maxsize=8)
def pretraining_facts(world_seed: int, knows: str) -> frozenset[str]:
    """The questions about facts (`Prompt.question`) that these lines answer, dozens of times each in 40,000 lines.

    Questions of skills are not listed: lines answer no held-out one. Raises SettingsError for another `knows`.
    """
    check_choice("knows", knows, KNOWS)
    known = _known(world_seed, knows)
    return frozenset(Prompt(source, slots, 0).question for source in known for slots in known[source])


def _known(world_seed: int, knows: str) -> dict[str, list[Slots]]:
    """The entities that lines may ask about, by fact source."""
    facts = draw_facts(world_seed)
    # every entity, clinic included; the canary is in no training text
    if knows == "all":
        return {name: SOURCES[name].keys for name in DOMAINS["all"] if SOURCES[name].is_fact}
    return {
        "capital": [slots for slots in SOURCES["capital"].keys if slots[0] in facts.known_capital],
        "coin": [slots for slots in SOURCES["coin"].keys if slots[0] in facts.known_coin],
    }
