"""A few of the fuzzer's inputs, in every run of the tests."""

import pytest

from tests.fuzz.corpus_reader import try_input


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_every_input_ends_in_rows_or_in_one_sentence(first, tmp_path):
    ends = []
    for number in range(first, first + 40):
        (tmp_path / str(number)).mkdir()
        ends.append(try_input(number, tmp_path / str(number)))
    assert "rows" in ends and len(set(ends)) > 2
