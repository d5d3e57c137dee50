"""Plots: axes come back with what was given, labels do not overlap, files repeat to the byte."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from harness.report.figures.forest import arms_of, forest
from harness.report.figures.labels import GREY, spread
from harness.report.figures.plots import crossover, crossover_figure, footnote
from harness.results.arms import Metric
from harness.results.paired_gains import crossovers
from harness.results.table import headline, select, summary
from tests.invented_records import DATA_SCALING, cell, grid
from tests.invented_suite import COLUMNS, suite


def small(seeds=2):
    records, load_items = grid({"kd": {0.01: 0.1, 0.1: 0.05, 1.0: 0.0}, ("kd", "strong"): {0.01: 0.2, 0.1: 0.1}}, seeds)
    frame = summary(records, load_items)
    return frame, crossovers(records, headline(frame), load_items)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_names_at_the_ends_keep_their_distance_and_their_order():
    assert spread([10, 11, 40], gap=12, low=0, high=100) == pytest.approx([4.5, 16.5, 40])
    places = spread([50, 50.1, 50.2, 49, 3], gap=10, low=0, high=60)
    assert np.diff(sorted(places)).min() >= 10 - 1e-9 and min(places) >= 0 and max(places) <= 60
    assert np.argsort(places).tolist() == [4, 3, 0, 1, 2]


def test_ticks_are_the_fractions_and_lines_references_and_zero_are_named():
    frame, found = small()
    left, right = Figure().subplots(1, 2)
    crossover(select(frame), left, right, found)
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1 %", "10 %", "100 %"]
    assert {"SFT", "kd · weak", "kd · strong"} <= set(texts(left))
    assert any(text.startswith("weak teacher 0.") for text in texts(left)) and "SFT" in texts(right)


def test_drawn_gains_are_those_of_the_summary():
    frame, _ = small()
    left, right = Figure().subplots(1, 2)
    crossover(select(frame), left, right)
    kd = frame[(frame["method"] == "kd") & (frame["teacher"] == "weak")].sort_values("data_frac")
    drawn = [line.get_ydata() for line in right.lines]
    assert any(len(y) == 3 and np.allclose(np.asarray(y, float), kd["gain"].to_numpy(float)) for y in drawn)


def test_one_seed_is_dashed_has_no_band_and_is_said():
    frame, _ = small(seeds=1)
    left, right = Figure().subplots(1, 2)
    crossover(select(frame), left, right)
    assert all(c.get_linestyle()[0][1] is not None for c in right.collections if len(c.get_paths()))
    assert "excludes seed variance" in footnote(select(frame), None)


def test_teachers_differ_by_marker_and_methods_by_colour():
    records, load_items = grid(DATA_SCALING, seeds=2, worlds=(0, 1), size=60)
    left, right = Figure().subplots(1, 2)
    crossover(select(summary(records, load_items)), left, right)
    drawn = [line for line in right.lines if line.get_marker() not in ("None", "")]
    looks = {(line.get_color(), line.get_marker()) for line in drawn}
    assert len(looks) == 5 and {marker for _, marker in looks} == {"o", "s"}
    assert {"SFT", "sft_restart", "kd · weak", "kd · strong", "logit_kd · weak", "logit_kd · strong"} == set(
        texts(right)
    )


def test_a_teacher_trained_at_each_fraction_is_a_curve_and_not_a_rule_for_each():
    records, load_items = grid({"kd": {0.1: 0.1, 1.0: 0.0}}, seeds=2, references=False)
    records += [cell("teacher", f, 0, [1, 0, 1, f > 0.5], role="teacher", items={}) for f in (0.1, 1.0)]
    left, right = Figure().subplots(1, 2)
    crossover(select(summary(records, load_items)), left, right)
    assert "weak teacher" in texts(left)
    assert sum(line.get_color() == GREY for line in left.lines) == 1


def test_a_long_footnote_stays_on_the_page(tmp_path):
    records, load_items = grid(DATA_SCALING, seeds=2, worlds=(0, 1), size=60)
    frame = summary(records, load_items)
    found = crossovers(records, headline(frame), load_items)
    crossover_figure(frame, tmp_path / "f", found, size=(8, 3.8))
    svg = (tmp_path / "f.svg").read_text()
    lines = [line for line in re.findall("<!-- (.*?) -->", svg) if "95 %" in line or "crossover" in line]
    assert len(lines) > 1 and max(map(len, lines)) < 135


def test_files_are_the_same_bytes_twice(tmp_path):
    frame, found = small()
    first, second = (crossover_figure(frame, tmp_path / name, found) for name in "ab")
    assert [path.suffix for path in first] == [".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_grids_without_a_gain_or_a_score_still_have_a_figure(tmp_path):
    records, load_items = grid({"kd": {0.1: 0.1}}, seeds=1)
    only_sft = summary([r for r in records if r.method != "kd"], load_items)
    broken = summary([cell("kd", 0.1, 0, status="failed", reason="x")])
    for frame in (only_sft, broken, summary([])):
        assert all(path.stat().st_size > 1000 for path in crossover_figure(frame, tmp_path / "f"))


def test_panels_of_several_students_share_their_scales(tmp_path, monkeypatch):
    frame, _ = small()
    gains = ["gain", "gain_low", "gain_high"]
    large = frame.assign(student="large", **{name: frame[name] + 0.4 for name in gains})
    drawn: list[Figure] = []
    monkeypatch.setattr("harness.report.figures.plots.save", lambda figure, path: drawn.append(figure))
    crossover_figure(pd.concat([frame, large], ignore_index=True), tmp_path / "f")
    first, second = (part.axes for part in drawn[0].subfigs)
    assert [ax.get_ylim() for ax in first] == [pytest.approx(ax.get_ylim()) for ax in second]
    assert first[1].get_ylim()[1] > 0.4


def test_a_panel_shows_the_teacher_of_its_own_corpus(tmp_path, monkeypatch):
    frame, _ = small()
    teacher = frame["role"] == "teacher"
    other = frame.assign(corpus="clean", score=frame["score"].mask(teacher, 0.875))
    drawn: list[Figure] = []
    monkeypatch.setattr("harness.report.figures.plots.save", lambda figure, path: drawn.append(figure))
    crossover_figure(pd.concat([frame, other], ignore_index=True), tmp_path / "f")
    clean, mini = (texts(part.axes[0]) for part in drawn[0].subfigs)
    assert "weak teacher 0.88" in clean and "weak teacher 0.88" not in mini


def test_a_line_joins_no_points_between_which_it_was_not_run():
    records, load_items = grid({"kd": {0.03: 0.1, 0.1: 0.1, 1.0: 0.0}, "seq_kd": {0.03: 0.1, 1.0: 0.0}}, seeds=2)
    left, right = Figure().subplots(1, 2)
    crossover(select(summary(records, load_items)), left, right)
    joined = [line.get_xdata() for line in right.lines if line.get_linestyle() != "None" and len(line.get_xdata()) > 1]
    assert any(np.allclose(np.asarray(x, float), (0.03, 0.1, 1.0)) for x in joined if len(x) == 3)
    assert not any(np.allclose(np.asarray(x, float), (0.03, 1.0)) for x in joined if len(x) == 2)


def test_both_panels_name_the_metric_and_the_narrow_one_without_its_version():
    records, load_items = suite({"kd": {0.1: (0.2, 0.1), 1.0: (0.0, 0.0)}}, seeds=2)
    frame = summary(records, load_items)
    for metric, gain in (
        (Metric("macro_average", "rescaled"), "macro_average rescaled, method minus SFT"),
        (Metric("gsm8k", COLUMNS["gsm8k"]), "gsm8k exact_match, method minus SFT"),
    ):
        left, right = crossover(select(frame, metric), *Figure().subplots(1, 2))
        assert (left.get_ylabel(), right.get_ylabel()) == (metric.label, gain)
    (axis,) = forest(arms_of(frame, Metric("macro_average", "raw")).query("data_frac == 1"), [Figure().subplots()])
    assert axis.get_xlabel() == "gain in macro_average raw over SFT"


def test_a_share_that_is_off_by_more_than_a_tenth_stands_at_the_axis():
    records, load_items = grid({"kd": {0.01: 0.1, 0.1: 0.05}})
    took = {0.01: 0.51, 0.1: 0.105}
    records = [replace(one, realised_frac=took.get(one.data_frac)) for one in records]
    frame = summary(records, load_items)
    left, right = Figure().subplots(1, 2)
    crossover(select(frame), left, right)
    for ax in (left, right):
        assert ax.get_xlabel() == "share of the training data (log scale); of the rows, 1 % is 51 %"
    crossover(select(small()[0]), *(axes := Figure().subplots(1, 2)))
    assert axes[0].get_xlabel() == "share of the training data (log scale)"
