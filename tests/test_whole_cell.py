"""One whole grid on the miniature, data to figure, small enough for every run of the suite; and the doors."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

import harness.api as harness
from harness.config import Launch
from harness.grid import main as grid

SMALL = {
    "data_frac": [0.1, 1.0],
    "corpus__rows": 240,
    "corpus__heldout_per_source": 4,
    "student__init": "random",
    "teacher__init": "random",
    "teacher__lessons": "[]",
    "budget__amount": 5,
    "budget__batch_size": 8,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids")
    cells = harness.grid(method=["sft", "sft_restart", "kd", "logit_kd", "seq_kd"], **SMALL)
    return harness.run(cells, store=str(root / "store"), grid="small", launch=Launch(kind="inline"))


def test_every_cell_is_scored_and_so_are_base_and_teacher(finished):
    assert {record["status"] for record in finished.records} == {"done"}
    assert sum(record["role"] == "student" for record in finished.records) == 10
    assert {record["role"] for record in finished.records} == {"student", "base", "teacher"}
    tidy = harness.results("small", store=str(finished.folder.parent.parent))
    assert {"verified", "heldout"} <= set(tidy["eval"])
    assert tidy[(tidy["eval"] == "heldout") & (tidy["source"] == "all")]["score"].between(0, 20).all()


def test_results_figure_and_verdict_are_on_disk(finished):
    for name in ("results.parquet", "results.csv", "crossover.png", "crossover.svg", "verdict.txt", "records.jsonl"):
        assert (finished.folder / name).stat().st_size > 0
    assert set(pd.read_parquet(finished.folder / "results.parquet")["method"]) >= {"sft", "kd", "base", "teacher"}
    assert finished.verdict == (finished.folder / "verdict.txt").read_text().strip()


def test_the_teachers_share_of_the_cost_is_counted_apart(finished):
    costs = {record["method"]: record["cost"] for record in finished.records if record["data_frac"] == 1.0}
    assert costs["sft"]["teacher"]["flops"] == 0
    assert costs["seq_kd"]["teacher"]["flops"] > 0  # the labels it was given
    assert costs["logit_kd"]["train"]["flops"] > costs["sft"]["train"]["flops"]  # the live teacher's forward passes
    for cost in costs.values():
        assert cost["total"]["flops"] == cost["train"]["flops"] + cost["teacher"]["flops"]


def test_every_arm_of_one_seed_and_fraction_was_given_the_same_rows_and_held_out_ids(finished):
    frozen = json.loads((finished.folder / "plan.json").read_text())
    for fraction in (0.1, 1.0):
        cells = [cell for cell in frozen["cells"] if cell["data_frac"] == fraction]
        subsets = {frozen["stages"][key]["inputs"]["subset"] for cell in cells for key in cell["train"]}
        assert len(subsets) == 1
    ids = {tuple(pd.read_parquet(record["items"]).query("eval == 'heldout'")["id"]) for record in finished.records}
    assert len(ids) == 1


def test_running_it_again_computes_nothing(finished, capsys):
    cells = harness.grid(method=["sft", "kd"], **SMALL)
    again = harness.run(cells, store=str(finished.folder.parent.parent), grid="again", launch=Launch(kind="inline"))
    assert "start " not in capsys.readouterr().err
    assert len(again.failed) == 0


def test_the_verbs_answer_from_the_store(finished, capsys):
    store = ["--store", str(finished.folder.parent.parent)]
    assert grid([*store, "status", "small"]) == 0
    assert "small: 10 of 10 cells done" in capsys.readouterr().out
    frozen = json.loads((finished.folder / "plan.json").read_text())
    sft, kd = (
        next(cell["train"][-1] for cell in frozen["cells"] if cell["method"] == name) for name in ("sft", "logit_kd")
    )
    assert grid([*store, "explain", sft, kd]) == 0
    assert 'settings.stage.divergence: "cross_entropy" -> "forward_kl"' in capsys.readouterr().out
    assert grid([*store, "results", "small"]) == 0
    assert finished.verdict.split(",")[0] in capsys.readouterr().out.replace("\n", " ")
    assert grid([*store, "gc"]) == 0
    assert "0 folders" in capsys.readouterr().out
    assert grid([*store, "status", "nonesuch"]) == 2
    assert "small" in capsys.readouterr().err


def test_a_plan_is_estimated_before_anything_is_made(tmp_path, capsys):
    assert grid(["--store", str(tmp_path / "store"), "plan", "data_frac=0.01,1.0", "method=sft,kd"]) == 0
    printed = capsys.readouterr().out
    assert "4 cells asked for, 4 different" in printed and "FLOPs" in printed
    assert not list((tmp_path / "store" / "objects").iterdir())


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "harness.run", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_a_failing_cell_is_a_row_with_its_reason_and_the_others_finish(tmp_path):
    small = [f"{name.replace('__', '.')}={value}" for name, value in SMALL.items() if name != "data_frac"]
    answer = run(
        "-m",
        "data_frac=0.1",
        "method=sft",
        "budget.learning_rate=1e-3,1e30",
        *small,
        "launch.kind=inline",
        "store=s",
        cwd=tmp_path,
    )
    assert answer.returncode == 1
    assert "failed: sft 0.1 seed 0" in answer.stdout and "diverged" in answer.stdout.lower()
    table = pd.read_csv(next((tmp_path / "s" / "grids").glob("*/results.csv")))
    students = table[table["role"] == "student"]
    assert set(students["status"]) == {"done", "failed"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data_frac=0"], "data_frac=0.0"),
        (["-m", "data_frac=0.1,ten", "method=sft,kd"], "data_frac='ten'"),
        (["method=nonesuch"], "sft_restart"),
        (["-m", "teacher=nonesuch,weak", "method=kd"], "strong"),
        (["method=kd", "teacher=none"], "method=kd needs a teacher"),
        (["corpus=jsonl", "corpus.path=nonesuch.jsonl"], "nonesuch.jsonl"),
        (["student=hf", "student.path=."], "path"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_exit_code_2_before_compute(words, said, tmp_path):
    answer = run(*words, cwd=tmp_path)
    assert answer.returncode == 2, answer.stderr
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("harness: ") and said in lines[0]
    assert not list(tmp_path.glob("outputs/objects/*"))


def test_a_corpus_row_that_cannot_be_read_is_refused_with_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    answer = run("-m", "method=sft", "data_frac=1.0,0.5", "corpus=jsonl", "corpus.path=rows.jsonl", cwd=tmp_path)
    assert answer.returncode == 2, answer.stderr
    assert "line 1" in answer.stderr.splitlines()[-1]
    assert "start   base" not in answer.stderr


def test_help_teaches_the_two_commands_and_lists_what_can_be_chosen(tmp_path):
    answer = run("--help", cwd=tmp_path)
    assert answer.returncode == 0
    assert "data_frac=0.01,0.1,1.0 method=sft,kd" in answer.stdout
    assert "logit_kd" in answer.stdout and "strong" in answer.stdout


def test_cfg_job_prints_the_settings(tmp_path):
    answer = run("--cfg", "job", "method=kd", cwd=tmp_path)
    assert answer.returncode == 0 and "student_share: 0.5" in answer.stdout
