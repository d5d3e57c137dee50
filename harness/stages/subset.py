"""Data stage `subset`: the rows of a mixture that one cell trains on, rendered for one tokenizer.

It reads what `mixture.py` makes. Per source the cell takes the first max(1, round(fraction x rows)) rows of one order,
which is seeded by `data_seed` and the source's name; largest-remainder quotas are not monotone in the fraction, so they
would not nest. Where more than `MANY_SOURCES` sources have fewer than `SMALL_SOURCE` rows, one row of each would be far
more than the fraction, so these form a pool: row p of a source of n rows enters at the fraction (p + u) / n, with a u
in (0, 1] of each source's own, so the pool gives its share and a source may give none. The realised share is recorded,
and warned of where it is off by more than a tenth. Every tenth row of that order is set apart for validation, so the
train rows of a fraction are also among the train rows of every larger one. All arms share the artifact.

Control tokens in texts stay text and are counted (`data/control_tokens.py`). A row that the tokenizer's chat template
rejects is refused, or dropped and counted, as `corpus.on_bad_row` says.

Where students train on prompts alone, the artifact has no answers: a row is its prompt and an empty span after it.
Fractions, validation and drops are of conversations. A conversation is one row, but n rows of one trained answer each
where the template rewrites earlier turns (`data/chat.py`): all n are on one side, and count as n rows from here on.

    train/, validation/   data sets: row, id, input_ids, starts, ends (spans of the assistant's turns)
    subset.json           realised share, counts per source, truncated and dropped rows, lengths, tokenizer_hash; where
                          conversations are rendered turn by turn, how many (turnwise_conversations) and their rows
                          (turnwise_rows); where texts have control tokens, how many of each
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.config.checks import SettingsError, refuse
from harness.config.machine import Machine
from harness.data import chat
from harness.data.control_tokens import drops_system, marks_of
from harness.data.corpora._rows import whole_prompt_hash, without_answers
from harness.data.sequences import TURN, conversation_of
from harness.models import loading
from harness.runtime import progress
from harness.store.store import write_json

ROWS_AT_ONCE = 1000
SMALL_SOURCE, MANY_SOURCES = 100, 20
OFF_BY = 0.1  # a realised share further from the fraction, relative to it, is warned about
GOLDEN = (5**0.5 - 1) / 2
ROWS_FOR_VALIDATION = 10  # a cell with fewer rows trains on all of them
COUNTS = ("n_train", "n_validation", "truncated_rows", "dropped_rows", "response_tokens")
"""Entries of `subset.json` that are counts of the stage's receipt."""
TOKENS = pa.list_(pa.int32())
RENDERED = pa.schema(
    [("row", pa.int64()), ("id", pa.string()), ("input_ids", TOKENS), ("starts", TOKENS), ("ends", TOKENS)]
)


def make_subset(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Choose, render and save the rows of one fraction.

    `settings`: `data_frac`, `data_seed`, `max_length` (tokens), `validation` (share of the cell's rows), for
    a block of rows `block` (start, end): the rows of the fraction `end` that are not in `start`, maybe none,
    and for prompts alone `answers` (`none`).
    `inputs`: `mixture`, `tokenizer` (a model folder), and optionally `exclude`, another mixture: rows whose
    prompt it holds out are dropped and counted; and `overlap`: rows that repeat an evaluation item are dropped too.
    `settings` may have `control_tokens` (`refuse`: a text with one is refused), and `where` the corpus's `on_bad_row`.
    Raises SettingsError when no row is left to train on, and for a row, held-out ones included, that the chat template
    rejects or that has a control token where these are refused.
    """
    path = inputs["mixture"] / "train.parquet"
    unanswered = settings.get("answers") == "none"
    assert not (unanswered and settings["validation"]), "validation needs answers to score"
    index = _Index.read(path)
    chosen, order, dropped = _training_rows(index, settings, inputs)
    validation = choose_validation(
        index.codes[chosen],
        index.names,
        index.prompts[chosen],
        order,
        settings["validation"],
        settings["data_seed"],
    )
    is_validation = np.zeros(len(index.codes), dtype=bool)  # (n,)
    # by row number, because rows are read back in batches of the mixture
    is_validation[chosen[validation]] = True

    tokenizer = loading.load_tokenizer(inputs["tokenizer"])
    check = _RowCheck(tokenizer, settings)
    if "block" not in settings:
        check.heldout(inputs["mixture"] / "heldout.parquet")
    tallies = {name: _Tally(out / f"{name}.arrow") for name in ("train", "validation")}
    for rows, ids, conversations in read_batches(path, chosen):
        if unanswered:
            conversations = [without_answers(messages) for messages in conversations]
        accepted = check.accepted(ids, conversations)
        if len(accepted) < len(ids):
            rows, ids = rows[accepted], [ids[place] for place in accepted]
            conversations = [conversations[place] for place in accepted]
        if unanswered:
            rendered = [[one] for one in chat.render_prompts(tokenizer, conversations, settings["max_length"])]
        else:
            rendered = chat.render_rows(tokenizer, conversations, settings["max_length"])
        for name, tally in tallies.items():
            part = [
                (row, id, of_row)
                for row, id, of_row in zip(rows, ids, rendered, strict=True)
                if is_validation[row] == (name == "validation")
            ]
            tally.add(part, index.codes)
    for name, tally in tallies.items():
        _save(tally, out / name)
        dropped["no assistant token within max_length"] += tally.without_response
    dropped += check.dropped
    train, held = tallies["train"], tallies["validation"]
    # a block may be empty: a small source has no row between two fractions
    if not train.rows and "block" not in settings:
        raise refuse(
            "data_frac",
            settings["data_frac"],
            f"no row is left to train on (dropped: {dict(+dropped)}{'; ' if check.control_tokens else ''}"
            f"{'; '.join(check.warnings()) if check.control_tokens else ''})",
            "take a larger fraction or a larger corpus.max_length",
        )
    description = _describe(settings, index, train, held, +dropped, loading.tokenizer_hash(tokenizer))
    description["warnings"] += check.warnings()
    if check.control_tokens:
        description["control_tokens"] = dict(sorted(check.control_tokens.items()))
    if "block" not in settings:
        description["realised_frac"] = realised = share_taken(index.codes, index.names, settings)
        description["warnings"] += _off(settings["data_frac"], realised)
    write_json(out / "subset.json", description)
    counts = {name: description[name] for name in COUNTS} | _turnwise(train, held)
    if check.control_tokens:
        counts["control_tokens"] = check.control_tokens.total()
    return {
        "counts": counts,
        "warnings": description["warnings"],
        **({"realised_frac": description["realised_frac"]} if "realised_frac" in description else {}),
    }


def choose_rows(codes: np.ndarray, names: list[str], data_frac: float, data_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a fraction (ascending) and each one's place in its source's order, both (k,) int64.

    `codes` (n,) holds each row's source as an index into `names`. A source's order does not depend on the fraction,
    so a larger fraction has every row of a smaller one.
    """
    count = np.bincount(codes, minlength=len(names))  # (S,)
    ends = np.cumsum(count)  # (S,)
    # stable, so that a source's row numbers ascend
    by_source = np.argsort(codes, kind="stable")  # (n,)
    taken = _rows_taken(count, names, data_frac, data_seed)  # (S,)
    rows, places = [], []
    for code in np.flatnonzero(taken):
        mine = by_source[ends[code] - count[code] : ends[code]]  # row numbers of this source
        order = _generator("order", data_seed, names[code]).permutation(mine)[: taken[code]]
        rows.append(order)
        places.append(np.arange(len(order)))
    row, place = np.concatenate(rows), np.concatenate(places)  # both (k,)
    # in the mixture's order, in which the file is read once
    ascending = np.argsort(row)
    return row[ascending], place[ascending]


def _rows_taken(count: np.ndarray, names: list[str], data_frac: float, data_seed: int) -> np.ndarray:
    """How many rows a fraction takes of each source (S,), where these have `count` (S,) rows; at least one in all."""
    taken = np.array([max(1, round(data_frac * rows)) if rows else 0 for rows in count.tolist()])  # (S,)
    small = np.flatnonzero((count < SMALL_SOURCE) & (count > 0))  # (P,)
    if len(small) <= MANY_SOURCES:
        return taken
    ties = np.array([_generator("pool", data_seed, names[code]).random() for code in small])  # (P,)
    small = small[np.lexsort((ties, count[small]))]
    # multiples of the golden ratio fill (0, 1] evenly, so sources of like size enter one after another
    enters = 1 - (ties.min() + np.arange(len(small)) * GOLDEN) % 1  # (P,)
    taken[small] = np.clip(np.floor(data_frac * count[small] - enters) + 1, 0, count[small])
    if not taken.any():
        taken[small[np.argmin(enters / count[small])]] = 1
    return taken


def share_taken(codes: np.ndarray, names: list[str], settings: Mapping[str, Any]) -> float:
    """The share of the mixture's rows that its fraction takes, validation rows and rows dropped later among them."""
    count = np.bincount(codes, minlength=len(names))
    return float(_rows_taken(count, names, settings["data_frac"], settings["data_seed"]).sum() / len(codes))


def choose_validation(
    codes: np.ndarray, names: list[str], prompts: np.ndarray, order: np.ndarray, share: float, data_seed: int
) -> np.ndarray:
    """Mask (k,) of the cell's rows set apart for validation: `share` of each source's order, evenly spaced.

    `order` is each row's place in its source's order. The spacing starts at a seeded point per source, so
    sources with few rows give their share on average; a source's first row stays in train. A row whose
    prompt is also trained on stays in train. A cell of ten or more rows has at least one validation row, if any of
    its prompts occurs once.
    """
    starts = [_generator("validation", data_seed, name).uniform(0, 1 - share) for name in names]
    phases = np.array(starts)[codes]  # (k,)
    # a row is set apart where `share` of the order up to it passes the next whole number
    carved = np.floor((order + 1) * share + phases) > np.floor(order * share + phases)  # (k,)
    # a prompt on both sides would let the validation loss fall by memory
    carved &= ~np.isin(prompts, prompts[~carved])
    if share > 0 and not carved.any() and len(codes) >= ROWS_FOR_VALIDATION:
        _, prompt_of, times = np.unique(prompts, return_inverse=True, return_counts=True)
        # the row latest in its order, so that the cell keeps its first rows; repeated prompts stay in train
        alone = np.flatnonzero((times[prompt_of] == 1) & (order > 0))
        carved[alone[np.argsort(-order[alone], kind="stable")][:1]] = True
    return carved


@dataclass(frozen=True)
class _Index:
    """Source and prompt of every row of a mixture: what rows are chosen by."""

    codes: np.ndarray
    """(n,) int32: each row's source as an index into `names`."""
    names: list[str]
    prompts: np.ndarray
    """(n,) uint64: the first 64 bits of each row's prompt hash."""

    @classmethod
    def read(cls, path: Path) -> "_Index":
        table = pq.read_table(path, columns=["source", "prompt_hash"], read_dictionary=["source"])
        # row groups have dictionaries of their own, in which one code may be two sources
        sources = table["source"].unify_dictionaries().combine_chunks()
        prompts = _first_64_bits(table["prompt_hash"])
        return cls(sources.indices.to_numpy(), sources.dictionary.to_pylist(), prompts)


def _training_rows(
    index: _Index, settings: Mapping[str, Any], inputs: Mapping[str, Path]
) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """Numbers of the cell's rows (k,), their places in their sources' orders (k,), and the dropped rows by reason."""
    fraction, seed = settings["data_frac"], settings["data_seed"]
    # chosen before rows are dropped, so that fractions nest whatever is dropped
    chosen, order = choose_rows(index.codes, index.names, fraction, seed)
    # rows of the smaller fraction are in earlier blocks, and keep their answers there
    if start := settings.get("block", [0])[0]:
        before, _ = choose_rows(index.codes, index.names, start, seed)
        new = ~np.isin(chosen, before)  # (k,)
        chosen, order = chosen[new], order[new]
    dropped: Counter[str] = Counter()
    if "exclude" in inputs:
        others = pq.read_table(inputs["exclude"] / "heldout.parquet", columns=["prompt_hash"])
        excluded = np.isin(index.prompts[chosen], _first_64_bits(others["prompt_hash"]))  # (k,)
        excluded |= _whole_prompts_in(inputs["mixture"], chosen, inputs["exclude"])
        dropped["prompt is held out in another mixture"] = int(excluded.sum())
        chosen, order = chosen[~excluded], order[~excluded]
    if "overlap" in inputs:
        pairs = pq.read_table(inputs["overlap"] / "pairs.parquet", columns=["row"])
        repeating = np.isin(chosen, pairs["row"])  # (k,)
        dropped["it repeats an item that is scored"] = int(repeating.sum())
        chosen, order = chosen[~repeating], order[~repeating]
    return chosen, order, dropped


def _whole_prompts_in(mixture: Path, chosen: np.ndarray, other: Path) -> np.ndarray:
    """Mask (k,) of the chosen rows whose whole prompt another mixture holds out.

    It is compared where one of the two mixtures knows rows by it, since the other may know the same rows by their first
    turn.
    """
    excluded = np.zeros(len(chosen), dtype=bool)  # (k,)
    described = (json.loads((folder / "mixture.json").read_text()) for folder in (mixture, other))
    if not any(one.get("rows_by_whole_prompt") for one in described):
        return excluded
    held = pq.read_table(other / "heldout.parquet", columns=["messages"])["messages"].to_pylist()
    hashes = {whole_prompt_hash(messages) for messages in held}
    at = 0
    for _, _, conversations in read_batches(mixture / "train.parquet", chosen):
        for messages in conversations:
            excluded[at] = whole_prompt_hash(messages) in hashes
            at += 1
    return excluded


def _describe(
    settings: Mapping[str, Any],
    index: _Index,
    train: "_Tally",
    held: "_Tally",
    dropped: Counter[str],
    tokenizer_hash: str,
) -> dict[str, Any]:
    """The content of `subset.json`: counts, rows by source, mean lengths, and warnings."""
    truncated = train.truncated + held.truncated
    sources = {
        name: {
            "in_mixture": int((index.codes == code).sum()),
            "train": train.per_source[code],
            "validation": held.per_source[code],
        }
        for code, name in enumerate(index.names)
    }
    return {
        "n_train": train.rows,
        "n_validation": held.rows,
        "truncated_rows": truncated,
        "dropped_rows": dropped.total(),
        "response_tokens": train.response_tokens,
        "dropped": dict(dropped),
        "tokenizer_hash": tokenizer_hash,
        "mean_input_tokens": train.input_tokens / max(train.rows, 1),
        "mean_response_tokens": train.response_tokens / max(train.rows, 1),
        "validation_response_tokens": held.response_tokens,
        "max_length": settings["max_length"],
        "sources": sources,
        **({"answers": "none"} if settings.get("answers") == "none" else {}),
        **_turnwise(train, held),
        "warnings": _warnings(settings, held, dropped, truncated),
    }


def _off(data_frac: float, realised: float) -> list[str]:
    """A warning where the realised share is off by more than `OFF_BY` of the fraction."""
    if abs(realised - data_frac) <= OFF_BY * data_frac:
        return []
    return [
        f"data_frac={data_frac:g} is {realised:.3g} of the rows here: every source gives whole rows, and at least one; "
        "take a larger fraction, or a corpus with more rows or fewer sources"
    ]


def _turnwise(train: "_Tally", held: "_Tally") -> dict[str, int]:
    """How many conversations became one row a turn, and these rows; nothing where none did."""
    conversations = train.turnwise_conversations + held.turnwise_conversations
    rows = train.turnwise_rows + held.turnwise_rows
    return {"turnwise_conversations": conversations, "turnwise_rows": rows} if conversations else {}


def _warnings(settings: Mapping[str, Any], held: "_Tally", dropped: Counter[str], truncated: int) -> list[str]:
    found = [f"rows left out: {number}, {reason}" for reason, number in sorted(dropped.items())]
    if truncated:
        found.append(
            f"rows cut: {truncated} to max_length={settings['max_length']} tokens, so their last tokens are not "
            "trained on; raise corpus.max_length to keep them whole"
        )
    if settings["validation"] and not held.rows:
        found.append("no validation rows, so no validation loss: the cell has too few rows, or its prompts all repeat")
    if settings.get("answers") == "none" and "block" not in settings:
        found.append("no validation rows: corpus.answers=none leaves no answer to score; all rows are trained on")
    return found


class _RowCheck:
    """What the tokenizer's template says to rows before they are rendered: those it rejects, and their control
    tokens."""

    def __init__(self, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self.tokenizer, self.marks = tokenizer, marks_of(tokenizer)
        self.drop = settings.get("where", {}).get("on_bad_row") == "drop"
        self.refuse_tokens = settings.get("control_tokens") == "refuse"
        self.dropped: Counter[str] = Counter()
        self.control_tokens: Counter[str] = Counter()
        self.rows_with_tokens = self.system_turns = 0

    def heldout(self, path: Path) -> None:
        """Raise SettingsError for a held-out row that could not be scored, which would end a grid after training."""
        table = pq.read_table(path, columns=["id", "messages"])
        _RowCheck(self.tokenizer, self._settings()).accepted(table["id"].to_pylist(), table["messages"].to_pylist())

    def accepted(self, ids: list[str], conversations: list[list[dict[str, str]]]) -> list[int]:
        """Places of the conversations that can be rendered. Raises SettingsError for the others where none is
        dropped."""
        places = []
        rejected = chat.rejections(self.tokenizer, conversations)
        for place, (id, messages) in enumerate(zip(ids, conversations, strict=True)):
            found = self.marks.count(messages)
            problem = "the chat template rejects it" if place in rejected else ""
            if found and self.refuse_tokens:
                problem = "its text has a control token of the tokenizer or template"
            if problem and not self.drop:
                detail = rejected.get(place) or ", ".join(sorted(found))
                way_out = "corpus.control_tokens=text" if place not in rejected else chat.WAY_OUT
                raise SettingsError(
                    f"row {id!r} of the corpus cannot be used: {problem} ({detail}); {way_out}, or "
                    "corpus.on_bad_row=drop to count and skip such rows."
                )
            if problem:
                self.dropped[problem] += 1
                continue
            self.control_tokens += found
            self.rows_with_tokens += bool(found)
            self.system_turns += messages[0]["role"] == "system"
            places.append(place)
        return places

    def warnings(self) -> list[str]:
        """What a reader of the record should know of the rows that were kept."""
        found = []
        if self.control_tokens:
            listed = ", ".join(f"{mark} {count}" for mark, count in sorted(self.control_tokens.items()))
            found.append(
                f"control tokens in the text of {self.rows_with_tokens} rows: {listed}; they are encoded as plain text "
                "and open or close no turn (corpus.control_tokens=refuse refuses such rows)"
            )
        if self.system_turns and drops_system(self.tokenizer):
            found.append(
                f"system turns are not rendered: the chat template leaves them out of {self.system_turns} rows; "
                f"{chat.WAY_OUT}"
            )
        return found

    def _settings(self) -> dict[str, Any]:
        tokens = {"control_tokens": "refuse"} if self.refuse_tokens else {}
        return {"where": {"on_bad_row": "drop" if self.drop else "refuse"}, **tokens}


class _Tally:
    """The train or the validation rows while they are written to an Arrow file, and their counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self.truncated = self.without_response = self.input_tokens = self.response_tokens = 0
        self.turnwise_conversations = self.turnwise_rows = 0
        self.per_source: Counter[int] = Counter()
        self.writer = pa.ipc.new_stream(str(path), RENDERED)

    def add(self, part: list[tuple[int, str, list[chat.Rendered]]], codes: np.ndarray) -> None:
        """Write the rows of conversations (number, id, rendered), one or one a turn.

        Those without an assistant turn are counted and left out.
        """
        rows = [
            (int(row), turn, id if len(of_row) == 1 else f"{id}/{turn}", one)
            for row, id, of_row in part
            for turn, one in enumerate(of_row)
        ]
        kept = [(row + turn * TURN, id, one) for row, turn, id, one in rows if one.starts]
        turnwise = {row: len(of_row) for row, _, of_row in part if len(of_row) > 1}
        self.turnwise_conversations += len(turnwise)
        self.turnwise_rows += sum(turnwise.values())
        self.without_response += len(rows) - len(kept)
        self.rows += len(kept)
        self.truncated += sum(one.truncated for _, _, one in kept)
        self.input_tokens += sum(len(one.input_ids) for _, _, one in kept)
        self.response_tokens += sum(sum(one.ends) - sum(one.starts) for _, _, one in kept)
        self.per_source.update(int(codes[conversation_of(row)]) for row, _, _ in kept)
        if not kept:
            return
        columns = zip(*((row, id, one.input_ids, one.starts, one.ends) for row, id, one in kept), strict=True)
        arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, RENDERED, strict=True)]
        self.writer.write_batch(pa.record_batch(arrays, schema=RENDERED))


def _save(tally: _Tally, folder: Path) -> None:
    """Turn the Arrow file into a saved data set, through a memory map, and remove it."""
    from datasets import Dataset

    tally.writer.close()
    with _without_progress_bars():
        # a data set without rows is only readable when its one, empty, shard is written
        Dataset.from_file(str(tally.path)).save_to_disk(folder, num_shards=None if tally.rows else 1)
    tally.path.unlink()


def read_batches(path: Path, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, list[str], list[list[dict[str, str]]]]]:
    """Row numbers, ids and messages of the chosen rows (ascending), about `ROWS_AT_ONCE` at a time.

    Raises OSError where the file cannot be read.
    """
    at = done = 0
    rows: list[np.ndarray] = []
    waiting: list[pa.RecordBatch] = []
    total = pq.ParquetFile(path).metadata.num_rows
    for batch in pq.ParquetFile(path).iter_batches(4 * ROWS_AT_ONCE, columns=["id", "messages"]):
        # `chosen` ascends, so the rows of a batch are one slice of it
        mine = chosen[np.searchsorted(chosen, at) : np.searchsorted(chosen, at + batch.num_rows)]
        waiting.append(batch.take(pa.array(mine - at)))
        rows.append(mine)
        at += batch.num_rows
        if at == total or sum(map(len, rows)) >= ROWS_AT_ONCE:
            table = pa.Table.from_batches(waiting)
            if table.num_rows:
                yield np.concatenate(rows), table["id"].to_pylist(), table["messages"].to_pylist()
            done += table.num_rows
            progress.report(done, len(chosen), note="rendering rows")
            rows, waiting = [], []


def _first_64_bits(hashes: pa.ChunkedArray) -> np.ndarray:
    """The first 16 hex digits of each hash as uint64."""
    numbers = (int(digest[:16], 16) for chunk in hashes.chunks for digest in chunk.to_pylist())
    return np.fromiter(numbers, dtype=np.uint64, count=len(hashes))


def _generator(purpose: str, data_seed: int, source: str) -> np.random.Generator:
    seed = hashlib.sha256(f"{purpose}/{data_seed}/{source}".encode()).digest()[:16]
    return np.random.default_rng(int.from_bytes(seed, "big"))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
