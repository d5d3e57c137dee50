"""Stage `overlap`: decontamination, by the 8-gram overlap of rows with the items that cells are scored on.

The rows are those of a mixture, or those a teacher generated; `data/ngram_overlap.py` has the rule. All rows of a
mixture are compared once with the items of all evaluations: a cell's pairs follow from the rows it takes
(`results/contamination.py`), so every fraction, seed and method shares the artifact. No model is needed, and of an
item's text only its normalised words are stored.

    items.parquet    eval (`heldout`: a held-out row of the mixture), source, id, prompt_hash, words
    pairs.parquet    row (its number in the mixture, or among the synthetic rows), item (its number), share
    overlap.json     the rule, counts of rows, items and overlaps by evaluation, hub revisions of the items
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.config.machine import Machine
from harness.data.corpora._rows import prompt_hash, whole_prompt_hash
from harness.data.ngram_overlap import HELDOUT, ItemIndex, own_words
from harness.data.text_similarity import words
from harness.runtime import progress
from harness.store.store import write_json

ROWS_AT_ONCE = 1000
ITEM = pa.schema([(name, pa.string()) for name in ("eval", "source", "id", "prompt_hash", "words")])
PAIR = pa.schema([("row", pa.int64()), ("item", pa.int64()), ("share", pa.float32())])


def make_overlap(settings: dict[str, Any], inputs: Mapping[str, Path], out: Path, machine: Machine) -> dict[str, Any]:
    """Compare rows with items; write the items and the pairs that overlap.

    `settings`: `size` and `share` of the rule, `benchmarks` (by name `card` with `revision` or `files`), and
    `where`, which has their `files` by name. `inputs`: `rows` (a mixture, or the output of a `synthesize` stage with
    the `tokenizer` of its ids), and `heldout`, a mixture, where its held-out rows are items.
    Raises SettingsError where a benchmark's file or data changed after the grid was planned.
    """
    table, revisions = _items(settings, inputs)
    pq.write_table(table, out / "items.parquet")
    items = _searchable(table, settings)
    done, columns = 0, [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)]
    for total, rows in _rows(inputs):
        found = items.overlaps(rows)
        # rows are numbered within a batch; the stored number is that of the mixture
        found = found._replace(row=found.row + done)
        columns = [np.concatenate(pair) for pair in zip(columns, found, strict=True)]
        done += len(rows)
        progress.report(done, total, note="comparing rows with items")
    pq.write_table(pa.table(columns, schema=PAIR), out / "pairs.parquet")
    # an item counts once, however many rows repeat it
    hit = table.take(pa.array(np.unique(columns[1])))["eval"]
    counts = {"rows": done, "overlapping_rows": len(np.unique(columns[0]))}
    for name in dict.fromkeys(table["eval"].to_pylist()):
        counts[f"{name}.items"] = pc.sum(pc.equal(table["eval"], name)).as_py()
        counts[f"{name}.overlapped"] = pc.sum(pc.equal(hit, name)).as_py() or 0
    rule = {name: settings[name] for name in ("size", "share")}
    write_json(out / "overlap.json", {**rule, **counts, "revisions": revisions})
    return {"counts": counts, "resolved": {"data_revisions": revisions}}


def read_items(folder: Path) -> ItemIndex:
    """The items of an `overlap` stage, to be searched for in other rows. Raises OSError where it has none."""
    return _searchable(pq.read_table(folder / "items.parquet"), json.loads((folder / "overlap.json").read_text()))


def _searchable(table: pa.Table, rule: Mapping[str, Any]) -> ItemIndex:
    return ItemIndex([text.split() for text in table["words"].to_pylist()], rule["size"], rule["share"])


def _items(settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> tuple[pa.Table, dict[str, str]]:
    """The items of all evaluations, and the hub revisions of those whose data is from there."""
    tables, revisions = [], {}
    if "heldout" in inputs:
        table = pq.read_table(
            inputs["heldout"] / "heldout.parquet", columns=["source", "id", "prompt_hash", "messages"]
        )
        prompts = [
            " ".join(word for turn in _asked(row, hash) for word in words(turn["content"]))
            for row, hash in zip(table["messages"].to_pylist(), table["prompt_hash"].to_pylist(), strict=True)
        ]
        names = pa.array([HELDOUT] * len(table), pa.string())
        columns = [names, table["source"], table["id"], table["prompt_hash"], pa.array(prompts, pa.string())]
        tables.append(pa.table(columns, schema=ITEM))
    for name, planned_as in settings["benchmarks"].items():
        from harness.evals.lm_evaluation.tasks import item_texts, planned

        benchmark, data = planned(name, planned_as, settings["where"]["files"].get(name, ()))
        found, revision = item_texts(name, benchmark, data)
        if revision is not None:
            revisions[name] = revision
        own: dict[str, list[list[str]]] = {}
        for source in dict.fromkeys(source for source, _, _ in found):
            # the template that all prompts of a source share would make every one a repeat of the others; reversed,
            # because `pop` takes from the end
            own[source] = own_words([text for other, _, text in found if other == source])[::-1]
        rows = [
            {"eval": name, "source": source, "id": number, "words": " ".join(own[source].pop())}
            for source, number, _ in found
        ]
        tables.append(pa.Table.from_pylist(rows, schema=ITEM))
    return pa.concat_tables(tables), revisions


def _asked(row: list[dict[str, str]], hash: str) -> list[dict[str, str]]:
    """The turns that are the item: what the user says; of a row that is known by its whole prompt, all before its
    answer, since other rows share what the user says."""
    if hash == whole_prompt_hash(row) != prompt_hash(row):
        return row[:-1]
    return [turn for turn in row if turn["role"] == "user"]


def _rows(inputs: Mapping[str, Path]) -> Iterator[tuple[int, list[list[str]]]]:
    """Batches of rows, each row as the texts of its turns; with each batch the number of all rows."""
    path = inputs["rows"] / "train.parquet"
    if not path.exists():
        yield from _synthetic_rows(inputs["rows"] / "synthetic", inputs["tokenizer"])
        return
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=["messages"]):
        lists = batch.column("messages")
        texts = lists.flatten().field("content").to_pylist()
        ends = np.cumsum(lists.value_lengths().to_numpy()).tolist()
        yield file.metadata.num_rows, [texts[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _synthetic_rows(folder: Path, tokenizer_folder: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Synthetic rows decoded from their tokens: the prompt without the words all prompts share, and each answer."""
    from datasets import load_from_disk

    from harness.models.loading import load_tokenizer

    tokenizer, dataset = load_tokenizer(tokenizer_folder), load_from_disk(folder)
    rows = dataset.to_list()

    def read(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    # as of a benchmark: the chat template's words are in all prompts
    prompts = own_words([read(row["input_ids"][: row["starts"][0]]) for row in rows])
    texts = [
        [" ".join(prompt), *(read(row["input_ids"][s:e]) for s, e in zip(row["starts"], row["ends"], strict=True))]
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    yield len(texts), texts
