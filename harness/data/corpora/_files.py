"""Files of a corpus: their rows, and the sha256 by which they enter an identity.

Rows of JSONL, Parquet and saved Hugging Face data sets come through one generator, a batch at a time, so a corpus may
be larger than memory. This file reads; `_rows.py` checks what was read.

    for row in read_rows(data_files("corpus.path", "answers.jsonl")):
        row.where, row.values, row.problem     # "answers.jsonl line 3", {...}, ""
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.data.corpora import corpus_name

SUFFIXES = (".jsonl", ".parquet", ".arrow")
OTHER_FORMS = {
    ".json": "write one JSON object a line, as .jsonl (a list in one file: jq -c '.[]' rows.json > rows.jsonl)",
    ".gz": "unpack it first: gunzip",
    ".zst": "unpack it first: unzstd",
    ".zip": "unpack it first: unzip",
    ".csv": "write it as .jsonl or .parquet, e.g. pandas.read_csv(path).to_parquet(...)",
    ".tsv": "write it as .jsonl or .parquet, e.g. pandas.read_csv(path, sep='\\t').to_parquet(...)",
    ".xlsx": "write it as .jsonl or .parquet, e.g. pandas.read_excel(path).to_parquet(...)",
    ".txt": "write one JSON object a line, as .jsonl",
}
"""Ways out for files of other forms, by suffix."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout", "holdout"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
}
"""Splits, by the words for them in names."""
SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?!\d).*")
LONGEST_LINE = 1 << 26
"""Bytes of a line that is read; a longer one is a bad row."""
LISTED_FILES = 5
ROWS_AT_ONCE = 1000
RULES = 2
"""Version of how rows of files become training rows; raised where some file gives others.

2: many small sources form a pool; a first turn that many rows share is no prompt by itself; control tokens in a text
are text; numbers and lists are truths of their own kind; sources that differ by case or white space are one."""
CHANGE_NO_ROW = ("path", "max_length", "max_new_tokens", "license", "least_heldout_rows", "control_tokens")
"""Settings that are no part of a corpus's identity."""


@dataclass(frozen=True)
class RawRow:
    """One row of a file: its values, or the reason why it cannot be read."""

    where: str
    """File and position, for messages: `answers.jsonl line 3`."""
    values: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class DataFiles:
    """The data files of a corpus in reading order, and what a reader of its record should know of the choice."""

    files: list[Path]
    notes: tuple[str, ...] = ()


def data_files(setting: str, path: str | Path) -> list[Path]:
    """The files of `choose_files`. Raises as that does."""
    return choose_files(setting, path).files


def choose_files(setting: str, path: str | Path) -> DataFiles:
    """The data files at `path`, in reading order: one file, a folder of shards, or a saved data set.

    Of a folder whose files, or folders of files, are named by split the training split alone is read, and said so.
    Raises SettingsError, with the field named `setting`, where nothing is there, it has no data, a shard is missing, or
    the training rows cannot be told from others.
    """
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix not in SUFFIXES:
            allowed = f"a data file ends in one of {', '.join(SUFFIXES)}"
            raise refuse(setting, str(path), allowed, OTHER_FORMS.get(place.suffix.lower(), ""))
        return DataFiles([place], _notes_on_file(place))
    if not place.is_dir():
        raise refuse(setting, str(path), "no such file or folder", "give a data file or a folder of them")
    # a folder of splits has no rows of its own, and a guess could train on the test split
    if (place / "dataset_dict.json").is_file():
        splits = _listing(setting, path, place / "dataset_dict.json", "splits")
        raise refuse(
            setting,
            str(path),
            f"this data set has the splits {', '.join(splits)}",
            f"choose one, e.g. {setting}={place / splits[0]}",
        )
    if (place / "state.json").is_file():
        # in the order in which `datasets` wrote them, which the names need not sort into
        files = [place / name for name in _listing(setting, path, place / "state.json", "_data_files")]
        _refuse_absent(setting, path, [file.name for file in files if not file.is_file()])
        return DataFiles(files, _notes_on_split(place.name, SPLIT_WORDS.get(place.name.lower(), "")))
    found = _data_files_under(place)
    if not found:
        held = sorted({file.suffix.lower() for file in place.iterdir() if file.suffix.lower() in OTHER_FORMS})
        way_out = OTHER_FORMS[held[0]] if held else ""
        reason = "the folder holds no .jsonl or .parquet file and no saved data set"
        raise refuse(setting, str(path), reason, way_out)
    chosen, notes = _training_files(setting, path, place, found)
    if len({file.suffix for file in chosen}) > 1:
        raise refuse(setting, str(path), "the folder mixes .jsonl and .parquet files", "give one file")
    _refuse_absent(setting, path, absent_shards([file.relative_to(place).as_posix() for file in chosen]))
    return DataFiles(chosen, notes)


def split_of(name: str) -> str:
    """The split that a file's or folder's name states: `train`, `test`, `validation`, or "" for none or several.

    `train-00000-of-00003.parquet` is train, `dev.jsonl` validation, `latest.jsonl` none.
    """
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def absent_shards(names: Sequence[str]) -> list[str]:
    """Names of the shards that are not among these, where names announce how many there are (`-of-00003`)."""
    shards: dict[tuple[str, str, str], set[int]] = {}
    digits: dict[tuple[str, str, str], int] = {}
    for name in names:
        if found := SHARD.fullmatch(name):
            # what follows the count may be a hash of the shard's own
            key = (found["before"], found["total"], Path(name).suffix)
            shards.setdefault(key, set()).add(int(found["number"]))
            digits[key] = len(found["number"])
    absent = []
    for (before, total, suffix), there in shards.items():
        # shards are numbered from 0, or from 1
        first = 1 if 0 not in there and int(total) in there else 0
        lost = sorted(set(range(first, first + int(total))) - there)
        absent += [f"{before}{number:0{digits[before, total, suffix]}d}-of-{total}{suffix}" for number in lost]
    return absent


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
    files_read = {"files": [file_sha256(file) for file in files], "rules": RULES}
    return {"kind": corpus_name(corpus), **kept, **files_read}


def why_unreadable(file: Path) -> str:
    """What a file without a readable row is instead, and the way out; "" where that is not seen."""
    if file.suffix != ".jsonl":
        return ""
    with open(file, "rb") as opened:
        head = opened.read(4096)
    for mark, form in ((b"\x1f\x8b", ".gz"), (b"(\xb5/\xfd", ".zst"), (b"PK", ".zip")):
        if head.startswith(mark):
            return f"{file.name} is a compressed file ({form}); {OTHER_FORMS[form]}"
    if head.startswith(b"PAR1"):
        return f"{file.name} is a Parquet file; name it .parquet"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        return f"{file.name} is not UTF-8 (it looks like UTF-16); convert it: iconv -f UTF-16 -t UTF-8"
    if head.lstrip().startswith(b"["):
        return f"{file.name} is one JSON array; {OTHER_FORMS['.json']}"
    if head.lstrip().startswith(b"{"):
        return f"{file.name} has no line that is a JSON object; write each row on one line (jq -c . {file.name})"
    return ""


def _data_files_under(place: Path) -> list[Path]:
    """Data files of a folder, or of the folders in it where it has none itself; hidden ones are left out."""
    # sorted: the system lists a folder in any order, and rows are numbered by it
    own = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES[:2] and not file.is_dir())
    below = sorted(
        file
        for file in place.rglob("*")
        if file.suffix in SUFFIXES[:2]
        and not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(place).parts)
    )
    # folders named by split count beside files of the folder itself; any others do not
    named = [file for file in below if file.parent != place and split_of(_folders(place, file))]
    return sorted({*own, *named}) if own or named else below


def _folders(place: Path, file: Path) -> str:
    return file.parent.relative_to(place).as_posix() if file.parent != place else ""


def _training_files(
    setting: str, path: str | Path, place: Path, found: list[Path]
) -> tuple[list[Path], tuple[str, ...]]:
    """The files of the training split, or all where no name states a split. Raises SettingsError where rows of another
    split lie beside files of none, and for folders of files that no split tells apart."""
    # the folder's word counts before the file's: train/part-test.jsonl is training data
    splits = {file: split_of(_folders(place, file)) or split_of(file.stem) for file in found}
    train = [file for file in found if splits[file] == "train"]
    others = [file for file in found if splits[file] in ("test", "validation")]
    unnamed = [file for file in found if not splits[file]]
    if others and not train:
        listed = _listed([file.relative_to(place).as_posix() for file in others])
        reason = f"the folder holds test or validation data ({listed}) and no file that is named as training data"
        raise refuse(setting, str(path), reason, f"give the file to train on, e.g. {setting}={(unnamed or found)[0]}")
    if train:
        left = [file.relative_to(place).as_posix() for file in found if file not in train]
        notes = (f"the training split alone is read; left out: {_listed(left)}",) if left else ()
        return train, notes
    if len({file.parent for file in found}) > 1:
        folders = sorted({_folders(place, file) for file in found})
        reason = f"it holds several folders of data ({_listed(folders)})"
        raise refuse(setting, str(path), reason, f"give one, e.g. {setting}={found[0].parent}")
    return found, ()


def _refuse_absent(setting: str, path: str | Path, absent: Sequence[str]) -> None:
    if absent:
        reason = f"shards of the data are missing: {_listed(absent)}"
        raise refuse(setting, str(path), reason, "fetch the data again, or give single files")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_FILES} more" if len(names) > LISTED_FILES else ""
    return ", ".join(names[:LISTED_FILES]) + more


def _notes_on_file(file: Path) -> tuple[str, ...]:
    """What to say of one file given by name: that it is named as test data, or is one shard of several."""
    absent = absent_shards([file.name])
    shard = (f"{file.name} alone is read, one of {len(absent) + 1} shards",) if absent else ()
    # a folder's name counts where it is the split's and nothing else
    split = split_of(file.stem) or SPLIT_WORDS.get(file.parent.name.lower(), "")
    return *_notes_on_split(file.name, split), *shard


def _notes_on_split(name: str, split: str) -> tuple[str, ...]:
    if split in ("", "train"):
        return ()
    return (f"{name} is named as {split} data, and is trained on as it was given by name",)


def _listing(setting: str, path: str | Path, file: Path, key: str) -> list[str]:
    """The names that a saved data set's description lists. Raises SettingsError where it lists none."""
    try:
        listed = json.loads(file.read_text())[key]
        names = [one["filename"] if isinstance(one, dict) else one for one in listed]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("no names")
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"its {file.name} has no list of {key.strip('_')} ({type(error).__name__})"
        raise refuse(setting, str(path), reason, "save the data set again") from error
    return names


def _read_jsonl(file: Path) -> Iterator[RawRow]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name} line {number}"
            if len(line) > LONGEST_LINE:
                yield RawRow(where, None, f"longer than {LONGEST_LINE >> 20} MiB")
                continue
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
            except ValueError:  # Python reads no integer of more than 4,300 digits
                yield RawRow(where, None, "a number with too many digits")


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
    except (pa.ArrowException, OSError, ValueError) as error:
        # some of these errors end in a line break, or say where in the library they were found
        why = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
        raise refuse("corpus.path", str(file), f"the file cannot be read ({why})", "fetch it again") from error


def _row_or_none(batch: Any, index: int) -> dict[str, Any] | None:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None
