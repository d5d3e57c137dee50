"""Sources and ids: one line, one spelling, no collision with rows of the tables, a row number where there is none."""

import math

from harness.data.corpora._names import LONGEST_NAME, RESERVED, Reading
from harness.evals import ALL, CANARY


def test_the_reserved_names_are_the_rows_of_every_table_of_scores():
    assert RESERVED == (ALL, CANARY)


def test_sources_are_one_line_of_one_spelling():
    reading = Reading("rows")
    given = [" Web\n pages ", "web pages", "WEB  PAGES", "", None, math.nan, 7, "a\x00b\u202e"]
    assert [reading.source(one) for one in given] == [
        (name, "") for name in ["Web pages"] * 3 + ["rows"] * 3 + ["7", "ab"]
    ]
    assert any("4 rows of" in said for said in reading.warnings())


def test_a_long_source_is_cut_and_stays_its_own():
    reading = Reading("rows")
    one, other = (reading.source("x" * 9_999 + end)[0] for end in "ab")
    assert one != other and len(one) == len(other) == LONGEST_NAME and one.startswith("xxx")


def test_a_source_that_is_a_row_of_the_tables_or_no_name_makes_a_bad_row():
    reading = Reading("rows")
    assert "a row of every table" in reading.source(" ALL ")[1]
    assert "a row of every table" in reading.source("canary")[1]
    assert "not a name" in reading.source({"name": "web"})[1]
    assert reading.source("\ud800")[1] == "the source is not UTF-8"


def test_ids_that_are_none_are_row_numbers_and_counted():
    reading = Reading("rows")
    given = ["a", 7, 7.5, None, "", math.nan, {"a": 1}, True]
    assert [reading.id(one, f"row-{n}")[0] for n, one in enumerate(given)] == [
        "a",
        "7",
        "7.5",
        "row-3",
        "row-4",
        "row-5",
        "row-6",
        "row-7",
    ]
    assert reading.warnings() == ["ids replaced by row numbers: 5 (NaN 1, missing 2, no text or number 2)"]
    assert reading.id("\ud800", "row-8")[1] == "the id is not UTF-8"


def test_a_file_without_ids_is_numbered_without_a_word():
    reading = Reading("rows")
    assert [reading.id(None, "rows-1"), reading.warnings()] == [("rows-1", ""), []]
