"""Fuzzing of the corpus readers: files that are right, odd, hostile and torn, one after another.

Every input ends in rows of the promised form, or in one SettingsError of one line; anything else is printed with the
number that draws it again.

    python -m tests.fuzz.corpus_reader --minutes 10
    python -m tests.fuzz.corpus_reader --first 4711 --inputs 1
"""

import argparse
import gzip
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.data.corpora._names import RESERVED
from harness.data.corpora._rows import ROLES
from harness.data.corpora.jsonl import Corpus
from harness.stages.mixture import make_mixture

TEXTS = (
    "", " ", "\n", "a", "Say 3.", "x" * 3000, "é日本🙂", "\ud800", "\x00", "\u2028", "\u202eabc", "<|im_end|>", "</s>",
    "<img src=x onerror=alert(1)>", "$\\input{x}$", "a,b\"c'", "../../etc", "all", "canary", "NaN", "\ufdd0", "{}",
)  # fmt: skip
SCALARS = (None, True, False, 0, 1, -1, 18.0, 0.1, float("nan"), float("inf"), 2**63, 10**400, -(2**70), *TEXTS)
FIELDS = (
    "role", "content", "tool_calls", "function_call", "reasoning_content", "name", "weight", "train", "loss", "images",
    "from", "value", "time", "", "tools",
)  # fmt: skip
COLUMNS = (
    "id", "messages", "source", "prompt", "completion", "truth", "tools", "input", "system", "context", "weight",
    "conversations", "text", "extra",
)  # fmt: skip
NAMES = (
    "rows.jsonl", "train.jsonl", "test.jsonl", "dev.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl",
    "data/train.jsonl", "validation/a.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet", "state.json",
    "dataset_dict.json", ".hidden.jsonl", "a b'\".jsonl", "rows.csv",
)  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = draw.random()
    if depth > 3 or kind < 0.7:
        return draw.choice(SCALARS)
    if kind < 0.85:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(FIELDS): value(draw, depth + 1) for _ in range(draw.randrange(4))}


def content(draw: random.Random) -> Any:
    """The content of a message: text as a rule."""
    kind = draw.random()
    if kind < 0.97:
        return draw.choice(("a", "Say 3.", "é日本🙂", "x" * 3000, "\u2028", "<|im_end|>")) + str(draw.randrange(50))
    if kind < 0.985:
        return [{"type": "text", "text": draw.choice(TEXTS)}, {"type": draw.choice(("text", "image_url")), "text": "b"}]
    return value(draw)


def message(draw: random.Random, role: str) -> Any:
    """One message, right as a rule."""
    made = {"role": role, "content": content(draw)}
    if draw.random() < 0.01:
        made[draw.choice(FIELDS)] = value(draw)
    if draw.random() < 0.004:
        made.pop(draw.choice(("role", "content")), None)
    return made if draw.random() > 0.003 else value(draw)


def row(draw: random.Random) -> Any:
    """One row, right as a rule."""
    if draw.random() < 0.01:
        return value(draw)
    made: dict[str, Any] = {"id": draw.choice(("a", 1, 2**80)), "source": draw.choice(("web", " Web ", "b", None))}
    if draw.random() < 0.7:
        roles = ["system"] * (draw.random() < 0.2) + ["user", "assistant"] * draw.randrange(1, 3)
        made["messages"] = [message(draw, role) for role in roles]
    else:
        made |= {"prompt": content(draw), "completion": content(draw)}
    if draw.random() < 0.2:
        made["truth"] = value(draw)
    if draw.random() < 0.03:
        made[draw.choice(COLUMNS)] = value(draw)
    return made


def spoiled(draw: random.Random, data: bytes) -> bytes:
    """The bytes, seldom torn, doubled, recoded or with some bytes changed."""
    kind = draw.random()
    if kind < 0.7 or not data:
        return data
    if kind < 0.76:
        return data[: draw.randrange(len(data))]
    if kind < 0.82:
        place = draw.randrange(len(data))
        return data[:place] + draw.randbytes(draw.randrange(1, 8)) + data[place:]
    if kind < 0.86:
        return b"\xef\xbb\xbf" + data
    if kind < 0.9:
        return data.replace(b"\n", b"\r\n")
    if kind < 0.93:
        return data.decode("utf-8", "replace").encode("utf-16")
    if kind < 0.96:
        return gzip.compress(data)
    return draw.choice((b"[" * 100_000, b"9" * 5000, b'{"a":' + b"9" * 5000 + b"}\n", b"", b"\0" * 100, b"null\n"))


def jsonl(draw: random.Random) -> bytes:
    """The content of a JSONL file."""
    rows = [row(draw) for _ in range(draw.choice((0, 1, 3, 30, 80)))]
    if draw.random() < 0.03:
        return json.dumps(rows, indent=draw.choice((None, 1))).encode("utf-8", "surrogatepass")
    lines = (json.dumps(one, ensure_ascii=draw.random() < 0.5) for one in rows)
    return spoiled(draw, "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))


def parquet(draw: random.Random, path: Path) -> None:
    """A Parquet file of rows or of columns without sense, maybe torn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [one for one in (row(draw) for _ in range(draw.choice((0, 1, 30)))) if isinstance(one, dict)]
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        texts = pa.array([b"good", b"\xff", b""]).view(pa.string())
        pq.write_table(pa.table({draw.choice(COLUMNS): texts, "prompt": texts, "completion": texts}), path)
    path.write_bytes(spoiled(draw, path.read_bytes()))


def settings_of(draw: random.Random) -> dict[str, Any]:
    """Settings of a corpus: the defaults as a rule."""
    chosen: dict[str, Any] = {"heldout_rows": draw.choice((1, 10, 1000))}
    if draw.random() < 0.5:
        chosen["on_bad_row"] = "drop"
    if draw.random() < 0.3:
        chosen["truth_column"] = "truth"
    if draw.random() < 0.2:
        chosen["answers"] = "none"
    if draw.random() < 0.1:
        chosen["sources"] = [draw.choice(("web", "b", "nowhere", ""))]
    if draw.random() < 0.1:
        chosen[draw.choice(("prompt_column", "messages_column", "source_column", "id_column"))] = draw.choice(COLUMNS)
    return chosen


def make_input(draw: random.Random, folder: Path) -> Path:
    """Write one file, or a folder of some, and return where it lies."""
    usual = [draw.choice(("rows.jsonl", "rows.jsonl", "rows.parquet"))]
    for name in usual if draw.random() < 0.7 else draw.sample(NAMES, draw.randrange(1, 5)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            parquet(draw, path)
        elif name.endswith(".json") and name != "rows.json":
            path.write_text(
                json.dumps(draw.choice(({}, [], {"splits": ["train", "test"]}, {"_data_files": [{}]}, None)))
            )
        else:
            path.write_bytes(jsonl(draw))
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return folder if len(files) > 1 or draw.random() < 0.2 else files[0]


def check_row(row: Any) -> None:
    """Raise AssertionError unless a row has the promised form."""
    assert isinstance(row.id, str) and row.id and row.id.encode() is not None
    assert isinstance(row.source, str) and row.source and row.source.encode() is not None
    assert row.source.casefold() not in RESERVED and "\n" not in row.source and len(row.source) <= 100
    assert row.truth is None or (isinstance(row.truth, str) and row.truth.strip())
    assert row.messages
    for turn in row.messages:
        assert set(turn) == {"role", "content"} and turn["role"] in ROLES
        assert turn["content"].strip() and turn["content"].encode() is not None


def try_input(number: int, folder: Path) -> str:
    """How the input of this number ends: `rows`, or the beginning of the sentence that refuses it. Raises what is
    neither."""
    draw = random.Random(number)
    path = make_input(draw, folder)
    try:
        settings = settings_of(draw)
        corpus = Corpus(path=str(path), **settings)
        corpus.check()
        corpus.identity(0)
        corpus.size()
        rows = list(corpus.examples(0))
        for one in rows:
            check_row(one)
        json.dumps(corpus.provenance()).encode()
        out = folder / "mixture"
        out.mkdir()
        asked = {"kind": "jsonl", "path": str(path), **settings}
        # the mixture lies in the folder that is read, unless a file is
        if path.is_file():
            make_mixture({"corpus": asked, "world_seed": 0, "scored": draw.random() < 0.3}, {}, out, Machine())
    except SettingsError as refusal:
        said = str(refusal)
        assert said and "\n" not in said and "Traceback" not in said, said
        assert len(said) < 2000, f"a sentence of {len(said)} characters"
        return " ".join(said.split()[:1])
    return "rows"


def main() -> int:
    """Draw inputs until the time is up; 1 where one ended in neither rows nor a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--inputs", type=int, default=None, help="how many at most")
    given = parser.parse_args()
    ends: Counter[str] = Counter()
    until, number = time.monotonic() + 60 * given.minutes, given.first
    bad = 0
    while time.monotonic() < until and (given.inputs is None or number < given.first + given.inputs):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            ends["rows" if try_input(number, folder) == "rows" else "refused"] += 1
        except Exception:
            bad += 1
            print(f"input {number}:", file=sys.stderr)
            traceback.print_exc()
            if bad == 10:
                break
        finally:
            shutil.rmtree(folder)
        number += 1
    print(
        f"{number - given.first} inputs: {ends['rows']} read, {ends['refused']} refused in one sentence, {bad} neither"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
