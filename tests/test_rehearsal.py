"""Three paper experiments end to end with stand-ins, and the table that shows what ran."""

import json
import re
from pathlib import Path

import pytest

from harness.rehearsal import Rehearsed, experiment_names, main, table
from harness.results.records import REHEARSAL

SMALL = ["launch.kind=inline", "evals.names=[heldout,gsm8k]", "primary_metric=null", "measure.formats=[]"]


@pytest.fixture(scope="module")
def store(tmp_path_factory, stand_ins):
    """A store whose stand-ins are those of the whole session."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "rehearsal").mkdir()
    (folder / "rehearsal" / stand_ins.name).symlink_to(stand_ins)
    return folder


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("controls", {"sft", "logit_kd", "self_kd"}),
        ("two_stage_ratio", {"sft", "two_stage"}),
        ("strong_teacher", {"sft", "kd"}),  # its teachers are served over HTTP
    ],
)
def test_an_experiment_runs_to_its_report_which_says_that_numbers_mean_nothing(name, methods, store, capsys):
    assert main([name, "--store", str(store), *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "ran to the end" in shown and shown.splitlines()[1].startswith(name)
    (grid,) = (store / "grids").glob(f"{name}*")
    records = [json.loads(line) for line in (grid / "records.jsonl").read_text().splitlines()]
    students = [record for record in records if record["role"] == "student"]
    assert {record["status"] for record in records} == {"done"}
    assert {record["method"].partition("[")[0].partition("(")[0].strip() for record in students} == methods
    assert all(REHEARSAL in record["budget"] for record in records)
    assert (grid / "verdict.txt").read_text().startswith(f"No verdict ({REHEARSAL})")
    report = store / "reports" / grid.name
    for page in (report / "report.md", report / "index.html"):
        text = page.read_text()
        assert REHEARSAL in text and not any(word in text for word in ("distil it", "Beats", "beats SFT at"))
    cards = list((store / "models" / grid.name).glob("*/RECEIPT.md"))
    assert cards and all("Rehearsal: numbers mean nothing" in card.read_text() for card in cards)
    written = b"".join(file.read_bytes() for file in Path(grid).glob("*.svg"))
    # each text is a comment beside its outlines, and a long subtitle is wrapped
    shown = " ".join(" ".join(re.findall("<!--(.*?)-->", written.decode(), re.DOTALL)).split())
    assert REHEARSAL in shown, "the figure names it too"


def test_every_paper_experiment_is_rehearsed():
    assert {"data_scaling", "strong_teacher", "two_stage"} <= set(experiment_names())


def test_an_unknown_experiment_is_refused_with_the_list(capsys):
    assert main(["nonesuch"]) == 2
    assert "nonesuch has no file in experiments/paper; there are budget_discipline" in capsys.readouterr().err


def test_what_cannot_be_planned_is_a_line_of_the_table_and_the_exit_code(store, capsys):
    assert main(["controls", "--store", str(store), "corpus.max_length=0"]) == 1
    assert "corpus.max_length=0 cannot be run" in capsys.readouterr().out


def test_the_table_adds_up():
    lines = table([Rehearsed("a", 2, 10, "1, 2+3", 4.4), Rehearsed("bb", 1, 5, "", 1.0, "it broke")]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "experiment cells stages seconds steps per phase",
        "a 2 10 4 1, 2+3 ran to the end",
        "bb 1 5 1 it broke",
        "all 3 15 5 numbers of a rehearsal mean nothing",
    ]
