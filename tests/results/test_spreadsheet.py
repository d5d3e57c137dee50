"""A table as CSV holds no formula, and the same texts come back from it."""

import csv
import io

import pandas as pd
import pytest

from harness.results.spreadsheet import csv_text, without_marks

TEXTS = [
    "=cmd|'/C calc'!A0",
    "+1+cmd()",
    "-2+3+cmd()",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "''+1",
    "a=1",
    "-0.5",
    "+3",
    "",
    "1",
]


def test_no_cell_is_a_formula_and_numbers_stay_numbers():
    frame = pd.DataFrame({"source": TEXTS, "gain": [-0.25] * len(TEXTS), "none": [None] * len(TEXTS)})
    cells = list(csv.reader(io.StringIO(csv_text(frame), newline="")))[1:]
    assert [row[1] for row in cells] == ["-0.25"] * len(TEXTS)
    assert [row[0] for row in cells if row[0][:1] in tuple("=+-@\t\r")] == ["-0.5", "+3"]  # numbers
    assert cells[0][0] == "'=cmd|'/C calc'!A0" and cells[8][0] == "a=1"


@pytest.mark.parametrize("text", [text for text in TEXTS if text and text not in ("-0.5", "+3", "1")])
def test_pandas_reads_the_texts_that_were_written(text):
    frame = pd.DataFrame({"source": [text, "other"], "gain": [-0.25, 0.5]})
    back = without_marks(pd.read_csv(io.StringIO(csv_text(frame), newline="")))
    assert back["source"].tolist() == [text, "other"] and back["gain"].tolist() == [-0.25, 0.5]
