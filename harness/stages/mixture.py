"""Data stage `mixture`: a whole corpus as Parquet, with its fixed held-out rows set apart.

`subset.py` takes a cell's fraction of it. The held-out rows depend on the corpus alone, never on a fraction or a seed
of a cell: per source, the prompts with the smallest hashes, whole prompts at a time, so no repeated row and no repeated
prompt is on both sides. A prompt is known by its first user turn, so the branches of a dialogue stay together; where
one first turn opens a good part of a source (a greeting, or a request whose document is in the system turn), its rows
are known by their whole prompts, since they could never be held out together. A row without an answer is never held
out, because it cannot be scored. Repeated rows stay in train, as in Tülu 3 (arXiv 2411.15124), and are counted. Rows
are read once and are never in memory together.

    train.parquet     id, messages, source, prompt_hash, row_hash
    heldout.parquet   the same and truth
    mixture.json      counts per source, dropped rows and why, repeats, sha256, licences, revision
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.config.machine import Machine
from harness.data.corpora import corpus_from
from harness.data.corpora._rows import is_answered, nothing_to_score, prompt_hash, row_hash, whole_prompt_hash
from harness.runtime import progress
from harness.store.store import write_json

ROWS_AT_ONCE = 500
SHARED_TURN, SHARED_ROWS = 0.05, 20
"""A first user turn with more than this share of a source's rows, and more than so many, is no prompt by itself."""
MOST_HELD_OUT = 5  # at most one row in this many of a source is held out, even where `heldout_rows` is larger
LISTED = 10  # names in a warning
SPLITS = ("", "train", "heldout")
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
ROW = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("source", pa.string()),
        ("prompt_hash", pa.string()),
        ("row_hash", pa.string()),
        ("truth", pa.string()),
    ]
)


def make_mixture(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Read the corpus and write its train and held-out rows into `out`.

    `settings`: `corpus` (the corpus's identity) and `where`, which holds `corpus` (the `kind` and its fields,
    `path` among them), `world_seed` and maybe `scored` (whether models are scored on its held-out rows); without
    `where`, `settings` has these itself. Raises SettingsError for rows that cannot be read, files that changed after
    planning, a corpus without rows or without answers, and one that is scored and holds out too few.
    """
    where = settings.get("where") or settings
    kind, world_seed = where["corpus"]["kind"], where["world_seed"]
    corpus = corpus_from(where["corpus"])
    corpus.check()
    # two passes: which rows are held out is known only when all prompts have been hashed
    spool = out / "rows.parquet"
    seen = _spool(corpus, world_seed, spool)
    provenance: dict[str, Any] = corpus.provenance()
    # after reading: `provenance` has the hashes of the files that were read
    _check_files(settings["corpus"].get("files"), provenance)

    dropped = Counter(provenance.get("dropped", {}))
    whole = _known_by_whole_prompt(seen)
    split = _split(corpus, kind, seen, dropped, whole)
    if where.get("scored"):
        _check_heldout(corpus, seen, split)
    _write(spool, out / "train.parquet", split.train, ROW.remove(ROW.get_field_index("truth")), whole)
    _write(spool, out / "heldout.parquet", split.heldout, ROW, whole)
    spool.unlink()

    counts, table = _count(split, seen, dropped, provenance.get("licenses", {}))
    warnings = list(provenance.get("warnings", [])) + _warnings(counts, table, corpus, dropped, seen.decided)
    write_json(
        out / "mixture.json",
        {
            "corpus": corpus.identity(world_seed),
            "revision": provenance.get("revision"),
            "read_from": provenance.get("files", []),
            **counts,
            **({"rows_by_whole_prompt": int(whole.sum())} if whole.any() else {}),
            "sources": table,
            "dropped": dict(dropped),
            "warnings": warnings,
            "files": {name: file_sha256(out / name, remember=False) for name in ("train.parquet", "heldout.parquet")},
        },
    )
    return {"counts": counts, "warnings": warnings}


def choose_heldout(
    prompts: np.ndarray, sources: np.ndarray, heldout_rows: int, answered: np.ndarray | None = None
) -> np.ndarray:
    """Mask (n,) of the rows held out, given each row's prompt hash (n,) uint64 and source number (n,) int, and
    whether it has an answer (n,) bool (None: all have).

    Per source about `heldout_rows` x its share of the answered rows, at least one prompt where it has two, at
    most a fifth of its rows (of all rows, shared out alike, where some have no answer); taken prompt by prompt
    in the order of their hashes. A prompt that does not fit is passed over; one that several sources share is
    held out in all of them or in none. Every source keeps a prompt to train on.
    """
    answered = np.ones(len(sources), dtype=bool) if answered is None else answered
    count = int(sources.max()) + 1
    unique, prompt_of = np.unique(prompts, return_inverse=True)  # (P,) distinct prompts, (n,)
    # a pair is a prompt within one source: pairs of one prompt are held out together, rows are counted by source
    pairs, pair_of = np.unique(prompt_of.astype(np.int64) * count + sources, return_inverse=True)  # (Q,), (n,)
    pair_rows = np.bincount(pair_of[answered], minlength=len(pairs))  # (Q,) answered rows
    pair_prompt, pair_source = np.divmod(pairs, count)  # both (Q,)
    first_pair = np.searchsorted(pair_prompt, np.arange(len(unique) + 1))  # (P + 1,)
    # by source: answered rows, and prompts that are not held out yet, both (S,)
    rows_of, left = np.bincount(sources[answered], minlength=count), np.bincount(pair_source, minlength=count)
    share = np.rint(heldout_rows * rows_of / answered.sum()).astype(np.int64)  # (S,)
    most = len(sources) * rows_of // (MOST_HELD_OUT * answered.sum())  # (S,)
    wanted = np.where((left >= 2) & (rows_of > 0), np.maximum(1, np.minimum(share, most)), 0)  # (S,)
    taken, held = np.zeros(count, dtype=np.int64), np.zeros(len(unique), dtype=bool)

    def take(prompt: int, must_fit: bool) -> None:
        # all sources that have this prompt
        span = slice(first_pair[prompt], first_pair[prompt + 1])
        touched, rows = pair_source[span], pair_rows[span]
        fits = bool((taken[touched] + rows <= wanted[touched]).all())
        if not held[prompt] and (left[touched] > 1).all() and (fits or not must_fit):
            held[prompt] = True
            taken[touched] += rows
            left[touched] -= 1

    answered_pairs = np.flatnonzero(pair_rows > 0)
    by_source = answered_pairs[np.argsort(pair_source[answered_pairs], kind="stable")]
    edges = np.searchsorted(pair_source[by_source], np.arange(count + 1))  # (S + 1,)
    for source in np.flatnonzero(wanted):
        mine = by_source[edges[source] : edges[source + 1]]
        for pair in mine:
            if taken[source] >= wanted[source]:
                break
            take(int(pair_prompt[pair]), must_fit=True)
        for pair in mine[np.argsort(pair_rows[mine], kind="stable")]:
            if taken[source]:
                break
            # every prompt has more rows than the share: take the smallest
            take(int(pair_prompt[pair]), must_fit=False)
    return held[prompt_of] & answered


@dataclass
class _Seen:
    """What is kept of every row while rows are read: 30 bytes, and each source's name once."""

    prompts: array = field(default_factory=lambda: array("Q"))
    wholes: array = field(default_factory=lambda: array("Q"))
    rows: array = field(default_factory=lambda: array("Q"))
    sources: array = field(default_factory=lambda: array("I"))
    splits: array = field(default_factory=lambda: array("B"))
    answered: array = field(default_factory=lambda: array("B"))
    names: list[str] = field(default_factory=list)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Prompt hashes and row hashes (first 64 bits), source numbers, and whether there is an answer."""
        return (
            np.frombuffer(self.prompts, dtype=np.uint64),
            np.frombuffer(self.rows, dtype=np.uint64),
            np.frombuffer(self.sources, dtype=np.uint32).astype(np.int64),
            np.frombuffer(self.answered, dtype=np.bool_),
        )

    @property
    def decided(self) -> bool:
        """Whether the corpus set the split itself."""
        return any(self.splits)


@dataclass(frozen=True)
class _Split:
    """Which of the n rows are trained on and which are held out, with what they are counted by; each (n,)."""

    train: np.ndarray
    heldout: np.ndarray
    answered: np.ndarray
    prompts: np.ndarray
    sources: np.ndarray


def _known_by_whole_prompt(seen: _Seen) -> np.ndarray:
    """Mask (n,) of the rows whose first user turn opens a good part of a source, with different prompts."""
    firsts, _, sources, _ = seen.arrays()  # each (n,)
    if not len(firsts) or seen.decided:
        return np.zeros(len(firsts), dtype=bool)
    unique, first_of = np.unique(firsts, return_inverse=True)  # (F,), (n,)
    pairs, pair_of = np.unique(first_of.astype(np.int64) * (sources.max() + 1) + sources, return_inverse=True)
    rows, of_source = np.bincount(pair_of), np.bincount(sources)  # (Q,), (S,)
    pair_first, pair_source = np.divmod(pairs, sources.max() + 1)  # both (Q,)
    shared = (rows > SHARED_ROWS) & (rows > SHARED_TURN * of_source[pair_source])  # (Q,)
    chosen = np.zeros(len(unique), dtype=bool)  # (F,)
    wholes = np.frombuffer(seen.wholes, dtype=np.uint64)  # (n,)
    for first in np.unique(pair_first[shared]):
        chosen[first] = len(np.unique(wholes[first_of == first])) > 1
    return chosen[first_of]


def _check_heldout(corpus: Any, seen: _Seen, split: _Split) -> None:
    """Raise SettingsError where too few rows are held out to score a model on."""
    held = int(split.heldout.sum())
    least = 1 if seen.decided else min(corpus.least_heldout_rows, max(1, corpus.heldout_rows // 2))
    if held < least:
        rows, prompts = len(split.heldout), len(np.unique(split.prompts))
        raise refuse(
            "corpus.least_heldout_rows",
            corpus.least_heldout_rows,
            f"{held} of {rows} rows ({prompts} different prompts) would be held out, and {least} are needed to score a "
            f"model (at most one row in {MOST_HELD_OUT} of a source is held out, whole prompts at a time)",
            "give more rows with different prompts"
            + (f", or set corpus.least_heldout_rows={held} to score on so few" if held else ""),
        )


def _split(corpus: Any, kind: str, seen: _Seen, dropped: Counter[str], whole: np.ndarray) -> _Split:
    """Set held-out rows apart; train rows whose prompt is held out are dropped and counted in `dropped`.

    `whole` (n,) says which rows are known by their whole prompt.

    Raises SettingsError where no row is left to train on, or none has an answer to score.
    """
    if not len(seen.prompts):
        raise refuse(
            "corpus",
            kind,
            f"no row is left to train on (dropped: {dict(dropped) or 'none'})",
            "loosen corpus.sources or look at the rows",
        )
    firsts, _, sources, answered = seen.arrays()  # each (n,)
    prompts = np.where(whole, np.frombuffer(seen.wholes, dtype=np.uint64), firsts)  # (n,)
    if not answered.any():
        raise nothing_to_score()
    heldout = _heldout(corpus, seen, prompts, sources, answered)  # (n,)
    # `choose_heldout` holds out whole prompts, so this concerns unanswered rows and splits that the corpus sets itself
    leaked = ~heldout & np.isin(prompts, prompts[heldout])  # (n,)
    if leaked.any():
        dropped["train row whose prompt is held out"] += int(leaked.sum())
    train = ~heldout & ~leaked  # (n,)
    if not train.any():
        raise refuse(
            "corpus",
            kind,
            "every row is held out, none is left to train on",
            "give more rows, or lower corpus.heldout_rows",
        )
    return _Split(train, heldout, answered, prompts, sources)


def _count(
    split: _Split, seen: _Seen, dropped: Counter[str], licences: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Counts of the whole mixture, and a row of counts for each source."""
    repeated = _repeats(seen.arrays()[1])  # (n,)
    counts = {
        "train_rows": int(split.train.sum()),
        "heldout_rows": int(split.heldout.sum()),
        "dropped_rows": dropped.total(),
        "repeats": int(repeated.sum()),
    }
    if not split.answered.all():
        counts["unanswered_rows"] = int((split.train & ~split.answered).sum())
    size = len(seen.names)
    # a prompt within one source, each once
    pairs = np.unique(np.stack([split.sources.astype(np.uint64), split.prompts]), axis=1)
    of_source = {
        "train": np.bincount(split.sources[split.train], minlength=size),
        "heldout": np.bincount(split.sources[split.heldout], minlength=size),
        "prompts": np.bincount(pairs[0].astype(np.int64), minlength=size),
        "repeats": np.bincount(split.sources[repeated], minlength=size),
    }
    table = {
        name: {**{what: int(count[code]) for what, count in of_source.items()}, "license": licences.get(name)}
        for code, name in enumerate(seen.names)
    }
    return counts, table


def _check_files(planned: list[str] | None, provenance: Mapping[str, Any]) -> None:
    if planned is not None and planned != provenance["files"]:
        raise refuse(
            "corpus.path",
            planned,
            "the files no longer have the sha256 they were planned with",
            "run the same command again to plan with the files as they are now",
        )


def _spool(corpus: Any, world_seed: int, spool: Path) -> _Seen:
    """Write every row to `spool` in order and keep its hashes."""
    seen, size = _Seen(), corpus.size()
    numbers: dict[str, int] = {}
    waiting: list[tuple[Any, ...]] = []
    with pq.ParquetWriter(spool, ROW, compression="lz4") as writer:
        for example in corpus.examples(world_seed):
            assert example.split in SPLITS, f"{example.id} has the split {example.split!r}"
            if example.source not in numbers:
                numbers[example.source] = len(numbers)
            prompt, row = prompt_hash(example.messages), row_hash(example.messages)
            # 16 hex digits are the 64 bits that an array entry holds
            seen.prompts.append(int(prompt[:16], 16))
            seen.wholes.append(int(whole_prompt_hash(example.messages)[:16], 16))
            seen.rows.append(int(row[:16], 16))
            seen.sources.append(numbers[example.source])
            seen.splits.append(SPLITS.index(example.split))
            seen.answered.append(is_answered(example.messages))
            waiting.append((example.id, example.messages, example.source, prompt, row, example.truth))
            if len(waiting) == ROWS_AT_ONCE:
                _flush(writer, waiting)
                read = len(seen.rows)
                progress.report(read, max(size.rows if size else 0, read + 1), note="reading rows")
        _flush(writer, waiting)
    seen.names = list(numbers)
    return seen


def _flush(writer: pq.ParquetWriter, waiting: list[tuple[Any, ...]]) -> None:
    if waiting:
        columns = zip(*waiting, strict=True)
        arrays = [pa.array(list(column), type=kind.type) for column, kind in zip(columns, ROW, strict=True)]
        writer.write_batch(pa.record_batch(arrays, schema=ROW))
        waiting.clear()


def _heldout(corpus: Any, seen: _Seen, prompts: np.ndarray, sources: np.ndarray, answered: np.ndarray) -> np.ndarray:
    if not seen.decided:
        return choose_heldout(prompts, sources, corpus.heldout_rows, answered)
    splits = np.frombuffer(seen.splits, dtype=np.uint8)
    assert splits.all(), "a corpus sets the split of every row or of none"
    heldout = splits == SPLITS.index("heldout")
    assert answered[heldout].all(), "a corpus holds out a row without an answer"
    return heldout


def _write(spool: Path, path: Path, kept: np.ndarray, schema: pa.Schema, whole: np.ndarray) -> None:
    """Copy the kept rows (mask over all rows, in order) from the spool; `whole` as in `_split`."""
    at, waiting = 0, []
    place = schema.get_field_index("prompt_hash")
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in pq.ParquetFile(spool).iter_batches(ROWS_AT_ONCE, columns=schema.names):
            rehashed = whole[at : at + batch.num_rows]
            if rehashed.any():
                hashes = batch["prompt_hash"].to_pylist()
                for row in np.flatnonzero(rehashed):
                    hashes[row] = whole_prompt_hash(batch["messages"][row].as_py())
                batch = batch.set_column(place, schema.field(place), pa.array(hashes, type=pa.string()))
            waiting.append(batch.filter(pa.array(kept[at : at + batch.num_rows])))
            at += batch.num_rows
            if at == len(kept) or sum(chosen.num_rows for chosen in waiting) >= ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_batches(waiting, schema=schema))
                waiting.clear()
    assert at == len(kept)


def _repeats(rows: np.ndarray) -> np.ndarray:
    """Mask (n,) of the rows that are exact repeats of an earlier one."""
    # `np.unique` gives the first place of each value; all others are repeats
    repeated = np.ones(len(rows), dtype=bool)  # (n,)
    repeated[np.unique(rows, return_index=True)[1]] = False
    return repeated


def _warnings(
    counts: Mapping[str, int],
    table: Mapping[str, Mapping[str, Any]],
    corpus: Any,
    dropped: Mapping[str, int],
    decided: bool,
) -> list[str]:
    found = [f"rows left out: {number}, {reason}" for reason, number in sorted(dropped.items())]
    without = sorted(name for name, row in table.items() if not row["heldout"])
    if without and not decided:
        names = ", ".join(without[:LISTED]) + (f" and {len(without) - LISTED} more" if len(without) > LISTED else "")
        why = "each has a single prompt or no answer, so none of its rows is scored"
        found.append(f"sources without held-out rows: {names}; {why}")
    if not decided and counts["heldout_rows"] < corpus.heldout_rows / 2:
        found.append(
            f"few held-out rows: {counts['heldout_rows']} in place of {corpus.heldout_rows}, since at most one row in "
            f"{MOST_HELD_OUT} of a source is held out, and none without an answer"
        )
    return found
