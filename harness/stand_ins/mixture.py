"""A stand-in of the Tülu 3 mixture: made-up rows of all its sources, in Parquet shards ordered by source.

Every source has its share of rows and the shape of its conversations: several turns, a system turn, long answers, code,
other scripts, rows that are repeated. The text is drawn from a few words; nothing of the real mixture is in it.

    conversations = write_mixture(Path("tulu-3-sft-mixture"))       # data/train-00000-of-00003.parquet, ...
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.data.corpora.tulu3 import COLUMNS, SOURCES

ROWS = 1300
"""About how many rows the mixture has: at 1 % the largest source still has a row to set apart for validation."""
LEAST_ROWS = 6
"""Of every source, so that each has held-out, validation and training rows."""
REPEATED = "tulu_hard_coded_repeated_10"
SHARDS = 3
WORDS = (
    "amber basket candle drift ember fallow garnet harbor island jasper kettle lantern meadow nutmeg orchard pebble "
    "quarry ribbon saddle thistle umber velvet willow yarrow zephyr anchor bramble copper dapple elder"
).split()
SCRIPTS = (
    "été à la plage",
    "ñandú y señal",
    "søen er blå",
    "дом у реки",
    "βουνό και θάλασσα",
    "山と川",
    "강과 산",
    "बड़ा घर",
)
MULTI_TURN = ("oasst1", "wildchat", "wildguard", "coconot")
SYSTEM = ("no_robots", "wildjailbreak", "hard_coded")
LONG = ("personahub_math", "numinamath", "personas-math", "evol_codealpaca")


def write_mixture(folder: Path, seed: int = 0) -> list[list[dict[str, str]]]:
    """Write the shards under `folder`/data; returns the conversations in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(_rows(random.Random(seed)))
    (folder / "data").mkdir(parents=True)
    per_shard = -(-len(rows) // SHARDS)
    for shard in range(SHARDS):
        part = rows[shard * per_shard : (shard + 1) * per_shard]
        table = pa.table({name: [row[name] for row in part] for name in COLUMNS})
        pq.write_table(table, folder / "data" / f"train-{shard:05d}-of-{SHARDS:05d}.parquet")
    return [row["messages"] for row in rows]


def _rows(draw: random.Random) -> Iterator[dict[str, Any]]:
    total = sum(source.rows for source in SOURCES.values())
    for name, source in SOURCES.items():
        count = max(LEAST_ROWS, round(ROWS * source.rows / total))
        short = name.rpartition("/")[2]
        repeats = 3 if short == REPEATED else 1
        for number in range(count):
            if number % repeats == 0:
                messages = _conversation(short, source.domain, number, draw)
            yield {"id": f"{short}_{number}", "messages": messages, "source": name}


def _conversation(source: str, domain: str, number: int, draw: random.Random) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": f"You are a {draw.choice(WORDS)}."}] if _is(source, SYSTEM) else []
    for turn in range(draw.randint(2, 3) if _is(source, MULTI_TURN) else 1):
        # the row's number makes prompts differ, so that each is on one side of the held-out rows
        turns.append({"role": "user", "content": f"{_question(domain, draw)} ({number}.{turn})"})
        turns.append({"role": "assistant", "content": _answer(source, domain, draw)})
    return turns


def _question(domain: str, draw: random.Random) -> str:
    one, two = draw.sample(WORDS, 2)
    if domain == "math":
        return f"What is {draw.randint(2, 99)} {one}s and {draw.randint(2, 99)} {two}s?"
    if domain == "code":
        return f"Write a function {one}_{two} that adds {draw.randint(2, 99)}."
    if domain == "multilingual":
        return f"{draw.choice(SCRIPTS)}, {one}?"
    return f"Tell me how a {one} finds the {two}."


def _answer(source: str, domain: str, draw: random.Random) -> str:
    sentences = draw.randint(5, 9) if _is(source, LONG) else draw.randint(1, 2)
    if domain == "code":
        name, amount = draw.choice(WORDS), draw.randint(2, 99)
        return "\n".join([f"def {name}(x):", *(f"    x = x + {amount}" for _ in range(sentences)), "    return x"])
    if domain == "multilingual":
        return " ".join(draw.choice(SCRIPTS) for _ in range(sentences))
    lines = [f"The {' '.join(draw.sample(WORDS, 4))}." for _ in range(sentences)]
    return " ".join([*lines, f"So it is {draw.randint(2, 99)}."] if domain == "math" else lines)


def _is(source: str, parts: tuple[str, ...]) -> bool:
    return any(part in source for part in parts)
