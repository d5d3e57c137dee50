"""Figures of the study beyond crossover and forest: drawn from invented records, with the same bytes each time."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from harness.plan.frozen import FrozenPlan
from harness.report.figures import by_source
from harness.report.figures.by_source import gains_by_source, source_figure
from harness.report.figures.costs import pareto_figure
from harness.report.figures.gap import gap, gap_figure, name_teachers
from harness.report.figures.plots import save
from harness.report.figures.scaling import scaling_figure
from harness.report.figures.settings import along, setting_figure, settings_of
from harness.report.figures.training import training_figure
from harness.results.arms import Metric
from harness.results.records import curves
from harness.results.scaling import scalings
from harness.results.stats.intervals import Interval
from harness.results.table import select, summary
from harness.results.teacher_gap import GapLine, gap_lines
from harness.store.store import Store
from tests.invented_records import DATA_SCALING, changed, frozen_cell, grid

ACCURACY = Metric("verified", "accuracy")
RATIOS = {(f"two_stage[ratio={ratio}]", "weak"): {0.1: 0.02 * ratio} for ratio in (1.0, 2.0, 4.0)}


@pytest.fixture(scope="module")
def main_grid():
    return grid(DATA_SCALING, seeds=3, size=120)


def drawn(paths, again) -> None:
    """Two files, not empty, and the same bytes when drawn again."""
    assert [path.suffix for path in paths] == [".png", ".svg"]
    before = [path.read_bytes() for path in paths]
    again()
    assert [path.read_bytes() for path in paths] == before and all(len(one) > 3000 for one in before)


def test_cost_and_quality_with_the_front_of_arms_that_none_cheaper_beats(main_grid, tmp_path):
    frame = summary(*main_grid)
    drawn(pareto_figure(frame, tmp_path / "c"), lambda: pareto_figure(frame, tmp_path / "c"))
    assert pareto_figure(frame[frame["method"] == "sft"], tmp_path / "none") == []
    assert pareto_figure(frame.assign(total_flops=float("nan")), tmp_path / "none") == []


def test_gains_by_source_speak_of_every_source_but_the_canary(tmp_path):
    records, load_items = grid({("kd", "weak"): {0.1: 0.05, 1.0: 0.0}}, seeds=2, size=60)
    for number, record in enumerate(records):  # as an evaluation writes them
        (score,) = record.plain()["scores"]
        scores = [{**score, "source": name} for name in ("all", "a", "b", "canary")]
        records[number] = changed(record, scores=scores)
    rows = gains_by_source(records, load_items, ACCURACY)
    assert set(rows["source"]) == {"a", "b"}
    values = {s: load_items(records[0].items["verified"]).query("source == @s")["score"].mean() for s in "ab"}
    assert values["a"] != values["b"]
    paths = source_figure(rows, tmp_path / "s")
    drawn(paths, lambda: source_figure(rows, tmp_path / "s"))
    bare = [changed(record, scores=record.plain()["scores"][:1]) for record in records]
    assert source_figure(gains_by_source(bare, load_items, ACCURACY), tmp_path / "none") == []


NAMES = [
    "ai2-adapt-dev/tulu_v3.9_personahub_math_interm_algebra_20k",
    "ai2-adapt-dev/personahub_math_v5_regen_149960",
    "$\\input{/etc/passwd}$ at $5 and $6",
    "W" * 200,
    "x" * 10_000,
    "x" * 9_999,
    "line\nbreak/slash, comma <b>\t\u202e",
    " ",
]


def test_names_of_sources_lie_within_the_figure_and_on_no_panel_whatever_they_are(tmp_path, monkeypatch):
    records, load_items = grid({("kd", "weak"): {0.1: 0.05, 1.0: 0.0}}, seeds=2, size=60)
    for number, record in enumerate(records):
        (score,) = record.plain()["scores"]
        scores = [{**score, "source": name} for name in ("all", *"abcdefgh")]
        records[number] = changed(record, scores=scores, student="s" * 100, corpus="c" * 90)
    rows = gains_by_source(records, load_items, ACCURACY)
    rows = rows.assign(source=rows["source"].map(dict(zip("abcdefgh", NAMES, strict=True))))
    figures = []
    monkeypatch.setattr(by_source, "save", lambda figure, path: [figures.append(figure), *save(figure, path)][1:])
    source_figure(rows, tmp_path / "s")
    (figure,) = figures
    figure.canvas.draw()
    whole, panels = figure.bbox, [ax.get_window_extent() for ax in figure.axes]
    labels = [label for label in figure.axes[0].get_yticklabels() if label.get_text()]
    assert len({label.get_text() for label in labels}) == len(NAMES)
    assert {name.replace("\n", "") for name in map(Text.get_text, labels)} >= {NAMES[0], NAMES[1]}
    boxes = [label.get_window_extent() for label in labels]
    for box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= panels[0].x0 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    for upper, lower in zip(
        sorted(boxes, key=lambda box: -box.y0), sorted(boxes, key=lambda box: -box.y0)[1:], strict=False
    ):
        assert lower.y1 <= upper.y0
    assert not any(label.get_text() for label in figure.axes[1].get_yticklabels())
    assert all(text.get_window_extent().x1 <= whole.x1 for text in figure.texts)
    assert figure.get_size_inches()[0] < 12


def test_a_settings_curve_takes_the_setting_that_varies_with_its_default(tmp_path):
    assert settings_of("kd[student_share=1.0, divergence=jsd]") == {"student_share": "1.0", "divergence": "jsd"}
    labels = ["sft", "logit_kd", "logit_kd[divergence_temperature=4.0]", "logit_kd[divergence_temperature=8.0]"]
    frame = pd.DataFrame({"method": [*labels, "logit_kd[control=shuffled]"]})
    method, name, chosen = along(frame)
    assert (method, name, chosen["x"].tolist()) == ("logit_kd", "divergence_temperature", [1.0, 4.0, 8.0])
    assert along(frame[:3]) is None and along(frame[:1]) is None
    frame = summary(*grid(RATIOS, seeds=2, size=60))
    drawn(setting_figure(frame, tmp_path / "r"), lambda: setting_figure(frame, tmp_path / "r"))
    assert along(select(frame, ACCURACY))[2]["x"].tolist() == [1.0, 2.0, 4.0]


def test_the_teacher_gap_has_a_line_per_fraction_and_a_slope_from_three_teachers_on(tmp_path):
    levels = {"poor": 0.5, "fair": 0.65, "good": 0.8}
    gains = {("logit_kd", name): {0.03: level - 0.5, 1.0: 0.0} for name, level in levels.items()}
    records, load_items = grid(gains, seeds=3, size=480, noise=0.003, teachers=levels)
    lines = sorted(gap_lines(records, ACCURACY, load_items), key=lambda line: line.names["data_frac"])
    assert [line.teachers for line in lines] == [("poor", "fair", "good")] * 2
    scarce, full = (line.slope for line in lines)
    assert scarce.low > 0.5 and full.low < 0 < full.high  # a point of gain per point of lead was put in, then none
    drawn(gap_figure(lines, ACCURACY, tmp_path / "g"), lambda: gap_figure(lines, ACCURACY, tmp_path / "g"))
    two = {name: levels[name] for name in ("poor", "good")}
    records, load_items = grid({k: v for k, v in gains.items() if k[1] in two}, seeds=2, size=60, teachers=two)
    lines = gap_lines(records, ACCURACY, load_items)
    assert lines and all(line.slope is None for line in lines) and gap_figure(lines, ACCURACY, tmp_path / "none") == []


def test_names_of_teachers_that_are_alike_lie_neither_on_each_other_nor_on_a_bar():
    scores = np.array([0.30, 0.41, 0.45, 0.48, 0.90])
    gains = tuple(Interval(g, g - 0.03, g + 0.03, 2.0, 0.01, 0.01, False, False) for g in (0.08, 0.1, 0.11, 0.1, 0.1))
    names = {"method": "kd", "data_frac": 0.1}
    line = GapLine(names, tuple(f"teacher_{n}" for n in range(5)), scores, 0.2, gains, None)
    figure = Figure(figsize=(4.7, 4.2))
    FigureCanvasAgg(figure)
    ax = gap(line, figure.add_axes((0.15, 0.15, 0.8, 0.7)))
    ax.set_ylim(0, 0.25)
    name_teachers(line, ax)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 5 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for lead, gain in zip(scores - 0.2, gains, strict=True):
        (x, low), (_, high) = ax.transData.transform([(lead, gain.low), (lead, gain.high)])
        assert not any(box.x0 < x < box.x1 and box.y0 < high and low < box.y1 for box in boxes)


def test_scaling_fits_are_of_every_arm_with_three_fractions(main_grid, tmp_path):
    records, load_items = main_grid
    fits = scalings(records, ACCURACY, load_items)
    assert {(arm.method, arm.teacher) for arm in fits} == {
        ("sft", None),
        ("sft_restart", None),
        ("kd", "weak"),
        ("logit_kd", "weak"),
    }
    paths = scaling_figure(fits, ACCURACY, tmp_path / "f")
    drawn(paths, lambda: scaling_figure(fits, ACCURACY, tmp_path / "f"))
    assert scaling_figure({}, ACCURACY, tmp_path / "none") == []


def test_training_curves_count_steps_through_a_cells_stages_and_leave_out_unfinished_ones(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    names = {"teacher": None, "student": "s", "corpus": "mini", "budget": "b", "world_seed": 0, "seed": 0}
    done = {"train-a", "train-b", "train-c"}
    monkeypatch.setattr(Store, "done", lambda self, key: key in done)
    for key, steps in {"train-a": 3, "train-b": 2, "train-c": 4}.items():
        folder = store.folder(key)
        folder.mkdir(parents=True)
        lines = [{"step": n + 1, "nll": 2.0 - n / 10, "loss": 1.0, "sequences": "given"} for n in range(steps)]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = [
        frozen_cell(**names, method="kd", data_frac=0.1, train=("train-a", "train-b")),
        frozen_cell(**names, method="sft", data_frac=0.1, train=("train-c",)),
        frozen_cell(**names, method="jsd_kd", data_frac=0.1, train=("train-a", "train-lost")),
    ]
    frame = curves(store, FrozenPlan("g", {}, tuple(cells)))
    assert frame.groupby("method")["step"].apply(list).to_dict() == {"kd": [1, 2, 3, 4, 5], "sft": [1, 2, 3, 4]}
    drawn(training_figure(frame, tmp_path / "t"), lambda: training_figure(frame, tmp_path / "t"))
    assert training_figure(curves(store, FrozenPlan("g", {}, ())), tmp_path / "none") == []
