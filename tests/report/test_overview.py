"""Public benchmarks side by side in the terminal."""

import io

from rich.console import Console

from harness.report.terminal import overview
from harness.results.table import summary
from tests.invented_records import cell, changed


def printed(records):
    console = Console(width=120, record=True, file=io.StringIO())
    table = overview(summary(records))
    return None if table is None else (console.print(table), console.export_text())[1]


def scored(record, **found):
    """A record with one score for each benchmark."""
    scores = [
        {"eval": name, "metric": f"acc@lm-eval-0.4.13/{name[:3]}", "source": source, "score": score}
        | {"standard_error": 0.1, "items": 9}
        for name, score in found.items()
        for source in ("all", name)
    ]
    return changed(record, scores=scores, items={})


def test_every_benchmark_is_a_column_and_every_model_a_row():
    text = printed(
        [
            scored(cell("sft", 0.1, 0, [1.0]), mmlu=0.25, drop=0.5),
            scored(cell("kd", 0.1, 0, [1.0]), mmlu=0.75),
            scored(cell("base", None, 0, [1.0], role="base"), mmlu=0.125, drop=0.0),
        ]
    )
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["base", "small", "0.000", "0.125"] in lines
    assert ["10", "%", "sft", "small", "0.500", "0.250"] in lines and [
        "10",
        "%",
        "kd",
        "weak",
        "small",
        "0.750",
    ] in lines
    assert "Scores of other suites" in text


def test_a_grid_without_benchmarks_has_none():
    assert printed([cell("sft", 0.1, 0, [1.0, 0.0], items={})]) is None
    assert printed([cell("sft", 0.1, 0, None, status="failed", reason="lost")]) is None


def test_the_macro_averages_stand_after_the_benchmarks():
    record = scored(cell("sft", 0.1, 0, [1.0]), mmlu=0.25, pubmedqa=0.5)
    told = {"eval": "macro_average", "source": "all", "standard_error": 0.1, "items": 18}
    more = [{**told, "metric": name, "score": score} for name, score in (("raw", 0.375), ("rescaled", 0.125))]
    text = printed([changed(record, scores=[*record.plain()["scores"], *more])])
    (row,) = (line.split() for line in text.splitlines() if "sft" in line)
    assert row == ["10", "%", "sft", "small", "0.250", "0.500", "0.375", "0.125"]
    assert text.count("macro_average") == 2 and "Scored by lm-eval-0.4.13" in text
