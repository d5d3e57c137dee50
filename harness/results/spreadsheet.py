"""Spreadsheets: a table as CSV in which none of them finds a formula.

A text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return and is no number has an apostrophe before it, as
spreadsheets write such a text themselves; so has a text with apostrophes before one of these. Numbers are left alone.

    path.write_text(csv_text(frame))
    without_marks(pandas.read_csv(path))        # the same texts again
"""

import csv
import re
from typing import Any

import pandas as pd

MARK = "'"
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_text(frame: pd.DataFrame) -> str:
    """The table as CSV, without its index."""
    texts = {str(name): column.map(_marked) for name, column in frame.items() if column.dtype.kind not in "biufmM"}
    # pandas puts no quotes round a carriage return, which readers take for a row's end
    returns = any("\r" in text for column in texts.values() for text in column if isinstance(text, str))
    marked = frame.assign(**texts)
    return marked.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC) if returns else marked.to_csv(index=False)


def without_marks(frame: pd.DataFrame) -> pd.DataFrame:
    """A table that was read from `csv_text`, with its texts as they were."""
    return frame.map(lambda value: value[1:] if isinstance(value, str) and _marked(value[1:]) == value else value)


def _marked(value: Any) -> Any:
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return MARK + value
    return value
