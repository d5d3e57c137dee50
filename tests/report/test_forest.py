"""The forest plot: rows in the order of their mean gain, dots where the summary has them, the same bytes again."""

import pytest
from matplotlib.figure import Figure

from harness.report.figures.forest import arms_of, forest, forest_figure
from harness.results.table import headline, summary
from tests.invented_records import grid

METHODS = {
    "kd": {0.01: 0.1, 0.1: 0.05},
    "seq_kd": {0.01: 0.2, 0.1: 0.15},
    ("kd", "strong"): {0.01: 0.3},
}


@pytest.fixture
def frame():
    records, load_items = grid(METHODS, 3)
    return summary(records, load_items)


def test_arms_stand_in_the_order_of_their_mean_gain_and_dots_are_the_gains(frame):
    rows = arms_of(frame, headline(frame))
    axes = forest(rows, list(Figure().subplots(1, 2)))
    names = [tick.get_text() for tick in axes[0].get_yticklabels()]
    means = rows.groupby("name")["gain"].mean()
    assert names == means.sort_values().index.tolist() and names[-1] == "kd · strong"
    dots = {line.get_ydata()[0]: line for line in axes[0].lines if line.get_marker() == "o"}
    first = rows[rows["data_frac"] == 0.01].set_index("name")
    assert len(dots) == len(first)
    for place, line in dots.items():
        row = first.loc[names[place]]
        assert line.get_xdata()[0] == row["gain"]
        assert (line.get_markerfacecolor() == "white") == (row["gain_p_holm"] >= 0.05)


def test_a_figure_is_the_same_bytes_again_and_none_without_a_gain(frame, tmp_path):
    first, again = (forest_figure(frame, tmp_path / name / "methods") for name in "ab")
    assert [path.suffix for path in first] == [".png", ".svg"]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(first, again, strict=True))
    assert forest_figure(frame[frame["method"] == "sft"], tmp_path / "c" / "methods") == []
