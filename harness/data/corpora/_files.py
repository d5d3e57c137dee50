"""Files of a corpus: their rows, and the sha256 by which they enter an identity.

Rows of JSONL, Parquet and saved Hugging Face data sets come through one generator, a batch at a time, so a corpus may
be larger than memory. This file reads; `_rows.py` checks what was read.

    for row in read_rows(data_files("corpus.path", "answers.jsonl")):
        row.where, row.values, row.problem     # "answers.jsonl line 3", {...}, ""
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.data.corpora import corpus_name

SUFFIXES = (".jsonl", ".parquet", ".arrow")
ROWS_AT_ONCE = 1000
CHANGE_NO_ROW = ("path", "max_length", "max_new_tokens", "license", "least_heldout_rows", "control_tokens")
"""Settings that are no part of a corpus's identity."""


@dataclass(frozen=True)
class RawRow:
    """One row of a file: its values, or the reason why it cannot be read."""

    where: str
    """File and position, for messages: `answers.jsonl line 3`."""
    values: dict[str, Any] | None
    problem: str = ""


def data_files(setting: str, path: str | Path) -> list[Path]:
    """The data files at `path`, in reading order: one file, a folder of shards, or a saved data set.

    Raises SettingsError, with the field named `setting`, where nothing is there, it has no data, or several splits.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise refuse(setting, str(path), f"a data file ends in one of {', '.join(SUFFIXES)}")
        return [place]
    if not place.is_dir():
        raise refuse(setting, str(path), "no such file or folder", "give a data file or a folder of them")
    # a folder of splits has no rows of its own, and a guess could train on the test split
    if (place / "dataset_dict.json").is_file():
        splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
        raise refuse(
            setting,
            str(path),
            f"this data set has the splits {', '.join(splits)}",
            f"choose one, e.g. {setting}={place / splits[0]}",
        )
    if (place / "state.json").is_file():
        # in the order in which `datasets` wrote them, which the names need not sort into
        listed = json.loads((place / "state.json").read_text())["_data_files"]
        return [place / entry["filename"] for entry in listed]
    # sorted: the system lists a folder in any order, and rows are numbered by it
    found = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES[:2])
    if not found:
        raise refuse(setting, str(path), "the folder holds no .jsonl or .parquet file and no saved data set")
    if len({file.suffix for file in found}) > 1:
        raise refuse(setting, str(path), "the folder mixes .jsonl and .parquet files", "give one file")
    return found


def read_rows(files: list[Path], columns: list[str] | None = None) -> Iterator[RawRow]:
    """Yield every row of the files in order; an unreadable row is yielded with its problem.

    `columns`: read at most these columns of Parquet and Arrow files (JSONL rows come whole). Raises OSError where a
    JSONL file cannot be read, SettingsError for a Parquet or Arrow file.
    """
    for file in files:
        yield from _read_jsonl(file) if file.suffix == ".jsonl" else _read_arrow(file, columns)


def count_rows(files: list[Path]) -> int:
    """Number of rows: exact for Parquet and Arrow, from file size and the first lines for JSONL.

    Raises OSError or ValueError for a JSONL or Parquet file that cannot be read, SettingsError for an Arrow file.
    """
    total = 0
    for file in files:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            total += pq.ParquetFile(file).metadata.num_rows
        elif file.suffix == ".arrow":
            total += sum(batch.num_rows for batch in _arrow_batches(file, None))
        else:
            with open(file, "rb") as opened:
                # only the first MiB is read: the number is for an estimate
                head = opened.read(1 << 20)
            lines = head.count(b"\n") + (not head.endswith(b"\n") and bool(head))
            total += round(lines * file.stat().st_size / len(head)) if head else 0
    return total


def identity_of(corpus: Any, files: list[Path]) -> dict[str, Any]:
    """A corpus of files as plain JSON: its fields that change rows, and its files by their sha256.

    Raises OSError where a file cannot be read.
    """
    kept = {name: value for name, value in asdict(corpus).items() if name not in CHANGE_NO_ROW}
    if corpus.answers == "given":
        del kept["answers"]  # identities made before this setting existed stay the same
    kept["sources"] = None if corpus.sources is None else sorted(set(corpus.sources))
    return {"kind": corpus_name(corpus), **kept, "files": [file_sha256(file) for file in files]}


def _read_jsonl(file: Path) -> Iterator[RawRow]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name} line {number}"
            try:
                # read as bytes and decoded line by line, so that one bad line does not end the file; a byte order
                # mark may open it
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    values = json.loads(text)
                    yield (
                        RawRow(where, values) if isinstance(values, dict) else RawRow(where, None, "not a JSON object")
                    )
            except UnicodeDecodeError:
                yield RawRow(where, None, "not UTF-8")
            except (json.JSONDecodeError, RecursionError):
                yield RawRow(where, None, "not JSON")


def _read_arrow(file: Path, columns: list[str] | None) -> Iterator[RawRow]:
    number = 0
    for batch in _arrow_batches(file, columns):
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            # row by row, so that only the rows with bad text are lost
            rows = [_row_or_none(batch, index) for index in range(batch.num_rows)]
        for values in rows:
            number += 1
            yield RawRow(f"{file.name} row {number}", values, "" if values is not None else "not UTF-8")


def _arrow_batches(file: Path, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            opened = pq.ParquetFile(file)
            names = opened.schema_arrow.names
            kept = [name for name in names if name in (columns or names)]
            yield from opened.iter_batches(ROWS_AT_ONCE, columns=kept)
            return
        with pa.memory_map(str(file)) as mapped:
            for batch in pa.ipc.open_stream(mapped):
                names = batch.schema.names
                # an Arrow file may hold one batch of all rows; slices share its memory map
                rows = batch.select([name for name in names if name in (columns or names)])
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    yield rows.slice(start, ROWS_AT_ONCE)
    except (pa.ArrowInvalid, OSError) as error:
        raise refuse("corpus.path", str(file), f"the file cannot be read ({error})", "fetch it again") from error


def _row_or_none(batch: Any, index: int) -> dict[str, Any] | None:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None
