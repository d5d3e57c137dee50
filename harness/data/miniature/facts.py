"""Facts of the miniature corpus: invented names, and the facts about them that a world seed draws.

Names are the same for every seed. Some facts have changed: an outdated entity has an old value, which annotators
still write and a better teacher does not.

    facts = draw_facts(0)
    facts.capital["Zovami"], facts.old_capital.get("Zovami")
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from harness.data.miniature import generator

CONSONANTS = "bcdfhjklmnpqrstvwxz"
"""Letters of operands and names; without vowels and `g` no operand is a word of the vocabulary."""
OUTDATED_SHARE = 0.3
KNOWN_SHARE = 0.5


@dataclass(frozen=True)
class Names:
    """The entities there are, in a fixed order."""

    countries: tuple[str, ...]
    towns: tuple[str, ...]
    coins: tuple[str, ...]
    ailments: tuple[str, ...]
    remedies: tuple[str, ...]
    secrets: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """The facts of one world seed, and the outdated values of some."""

    capital: dict[str, str]
    """Country -> town, one town each."""
    coin: dict[str, str]
    """Country -> coin."""
    old_capital: dict[str, str]
    """The outdated countries only -> the town annotators still name."""
    old_coin: dict[str, str]
    """The outdated countries only -> the coin annotators still name."""
    known_capital: frozenset[str]
    """Countries whose capital is in the pre-training lines of a base that `knows="half"`."""
    known_coin: frozenset[str]
    """Countries whose coin is in the pre-training lines of a base that `knows="half"`."""
    cure: dict[str, str]
    """Ailment -> remedy."""
    dose: dict[str, int]
    """Remedy -> units per kilo."""
    code: dict[str, str]
    """Canary name -> code word that occurs in no training row of any corpus."""


@lru_cache(maxsize=1)
def names() -> Names:
    """All names; pronounceable, distinct, and different in length by kind."""
    # no world seed here: worlds differ in the facts about the same names
    draw = generator("mini", "names")
    taken: set[str] = set()

    def some(pattern: str, count: int) -> tuple[str, ...]:
        kept: list[str] = []
        while len(kept) < count:
            name = "".join(draw.choice(CONSONANTS if letter == "c" else "aeiou") for letter in pattern)
            # taken in all kinds together, so that a name tells what it names
            if name not in taken:
                taken.add(name)
                kept.append(name.capitalize())
        return tuple(kept)

    return Names(
        countries=some("cvcvcv", 100),
        towns=some("cvcvc", 100),
        coins=some("cvc", 24),
        ailments=some("cvcvcv", 100),
        remedies=some("vcvc", 16),
        secrets=some("cvcvcv", 20),
    )


@lru_cache(maxsize=8)
def draw_facts(world_seed: int) -> Facts:
    """The facts of one world seed; the same in any process."""
    draw = generator("mini", "facts", world_seed)
    all_names = names()
    # without replacement: each country has a capital of its own
    towns = draw.sample(all_names.towns, len(all_names.countries))
    capital = dict(zip(all_names.countries, towns, strict=True))
    coin = {country: draw.choice(all_names.coins) for country in all_names.countries}
    # one generator in the order of the fields: a new draw before one of them would change every world
    return Facts(
        capital=capital,
        coin=coin,
        old_capital=_old(capital, all_names.towns, draw),
        old_coin=_old(coin, all_names.coins, draw),
        known_capital=frozenset(_share(all_names.countries, KNOWN_SHARE, draw)),
        known_coin=frozenset(_share(all_names.countries, KNOWN_SHARE, draw)),
        cure={ailment: draw.choice(all_names.remedies) for ailment in all_names.ailments},
        dose={remedy: draw.randint(2, 9) for remedy in all_names.remedies},
        code={secret: "".join(draw.choices(CONSONANTS, k=4)) for secret in all_names.secrets},
    )


def _share(entities: tuple[str, ...], share: float, draw: Random) -> list[str]:
    return draw.sample(entities, round(share * len(entities)))


def _old(current: dict[str, str], values: tuple[str, ...], draw: Random) -> dict[str, str]:
    """For the outdated share of the entities, a value that is not the current one."""
    return {
        entity: draw.choice([value for value in values if value != current[entity]])
        for entity in _share(tuple(current), OUTDATED_SHARE, draw)
    }
