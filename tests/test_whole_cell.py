"""One whole grid on the miniature, data to figure, small enough for every run of the suite; and the doors."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from transformers import LlamaConfig

import harness.api as harness
from harness.grid import main as grid
from harness.machine import Launch
from harness.models import random_model
from harness.store import Store
from harness.world.sizes import llama_settings
from harness.world.tokenizer import load_mini_tokenizer
from tests.fake_server import FakeServer

SMALL = {
    "data_frac": [0.1, 1.0],
    "corpus__rows": 240,
    "corpus__heldout_per_source": 4,
    "student__init": "random",
    "teacher__init": "random",
    "teacher__lessons": [[]],
    "budget__amount": 5,
    "budget__batch_size": 8,
}


def words_of(settings):
    """The same settings as words of a command line, fractions left out."""
    single = {name: value[0] if isinstance(value, list) else value for name, value in settings.items()}
    return [f"{name.replace('__', '.')}={value}" for name, value in single.items() if name != "data_frac"]


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


def test_a_teacher_behind_a_server_teaches_a_whole_cell_through_a_cache(tmp_path):
    tokenizer = load_mini_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    small = {name: value for name, value in SMALL.items() if not name.startswith("teacher")} | {"data_frac": 0.0002}
    with FakeServer(random_model(LlamaConfig(**llama_settings("small")), seed=1)) as fake:
        teacher = {"path": fake.url, "served_model": "tiny", "tokenizer": str(tmp_path / "tokenizer")}
        cells = harness.grid(
            method="logit_kd",
            teacher="served",
            signal__kind="top_k",
            signal__top_k=8,
            **{f"teacher__{name}": value for name, value in teacher.items()},
            **small,
        )
        done = harness.run(cells, store=str(tmp_path / "store"), grid="served", launch=Launch(kind="inline"))
        scored = [request for request in fake.requests if request.get("prompt_logprobs") == 8]
    (record,) = [record for record in done.records if record["role"] == "student"]
    assert record["status"] == "done" and record["settings"]["method"]["signal"]["top_k"] == 8
    assert record["cost"]["teacher"]["tokens"] == sum(len(request["prompt"]) for request in scored) > 0
    assert sum("FLOPs are not counted" in warning for warning in record["warnings"]) == 1, "once, not for every block"


def test_results_figure_and_verdict_are_on_disk(finished):
    for name in ("results.parquet", "results.csv", "crossover.png", "crossover.svg", "verdict.txt", "records.jsonl"):
        assert (finished.folder / name).stat().st_size > 0
    assert set(pd.read_parquet(finished.folder / "results.parquet")["method"]) >= {"sft", "kd", "base", "teacher"}
    assert finished.verdict == (finished.folder / "verdict.txt").read_text().strip()


def test_the_teachers_share_of_the_cost_is_counted_apart(finished):
    costs = {record["method"]: record["cost"] for record in finished.records if record["data_frac"] == 1.0}
    assert costs["sft"]["teacher"]["flops"] == 0
    assert costs["seq_kd"]["teacher"]["flops"] > 0  # the labels it was given
    assert costs["logit_kd"]["teacher"]["flops"] > 0  # the live teacher's forward passes, and only those:
    assert costs["logit_kd"]["train"]["flops"] == costs["sft"]["train"]["flops"]
    assert 0 < costs["logit_kd"]["teacher"]["seconds"] < costs["logit_kd"]["total"]["seconds"]
    for cost in costs.values():
        assert cost["total"]["flops"] == cost["train"]["flops"] + cost["teacher"]["flops"]


def test_prompts_alone_are_labelled_by_the_teacher_and_scored_like_any_cell(finished):
    small = {**SMALL, "data_frac": 0.001, "corpus__answers": "none"}
    root = finished.folder.parent.parent  # base, teacher and corpus are those of labelled cells
    cells = harness.grid(method="seq_kd", **small)
    cells += harness.grid(method="logit_kd", method__answers="teacher", **small)
    cells += harness.grid(method="on_policy", method__warmup=0.0, **small)
    done = harness.run(cells, store=str(root), grid="prompts", launch=Launch(kind="inline"))
    assert {record["status"] for record in done.records} == {"done"}
    students = {record["method"].partition("[")[0]: record for record in done.records if record["role"] == "student"}
    assert set(students) == {"seq_kd", "logit_kd", "on_policy"}
    for record in students.values():
        assert any(score["metric"] == "accuracy" for score in record["scores"])
        assert record["cost"]["train"]["flops"] > 0 and record["cost"]["teacher"]["flops"] > 0
        assert sum("no validation rows" in said for said in record["warnings"]) == 1
    for name in ("seq_kd", "logit_kd"):  # a fresh teacher never stops; all blocks of labels say so once
        assert sum("teacher's answers were cut" in said for said in students[name]["warnings"]) == 1
    store, frozen = Store(root), json.loads((done.folder / "plan.json").read_text())
    subsets = [key for key, spec in frozen["stages"].items() if spec["kind"] == "subset"]
    counts = [store.manifest(key)["facts"]["counts"] for key in subsets]
    assert len(counts) > 4 and sum(one["response_tokens"] for one in counts) == 0


def test_every_arm_of_one_seed_and_fraction_was_given_the_same_rows_and_held_out_ids(finished):
    frozen = json.loads((finished.folder / "plan.json").read_text())
    for fraction in (0.1, 1.0):
        cells = [cell for cell in frozen["cells"] if cell["data_frac"] == fraction]
        subsets = {frozen["stages"][key]["inputs"]["subset"] for cell in cells for key in cell["train"]}
        assert len(subsets) == 1
    ids = {tuple(pd.read_parquet(record["items"]["heldout"])["id"]) for record in finished.records}
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
    assert not (tmp_path / "store").exists(), "looking makes no store"


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "harness.run", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_a_failing_cell_is_a_row_with_its_reason_and_the_others_finish(tmp_path):
    small = words_of(SMALL)
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


def scores(root):
    """Every score of every record, without times."""
    lines = (next((root / "grids").glob("*/records.jsonl"))).read_text().splitlines()
    return {
        (record["cell"], record["role"], score["eval"], score["metric"], score["source"]): score["score"]
        for record in map(json.loads, lines)
        for score in record["scores"]
    }


def test_killed_in_the_middle_of_training_and_run_again_the_table_is_that_of_an_undisturbed_run(tmp_path):
    small = words_of(SMALL)
    words = ["-m", "data_frac=1.0", "method=sft,logit_kd", *small, "launch.workers=1", "machine.threads=1"]
    undisturbed = run(*words, "store=quiet", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr

    command = [sys.executable, "-m", "harness.run", *words, "store=killed"]
    running = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "killed" / "claims").glob("train-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert any((tmp_path / "killed" / "claims").glob("train-*")), "it was not killed in a train stage"

    again = run(*words, "store=killed", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert scores(tmp_path / "killed") == scores(tmp_path / "quiet")


RELOAD = """
import sys
from datasets import load_from_disk
from harness.models import load_model
from harness.sequences import Rows
from harness.trainers import mean_nll
import torch
torch.set_num_threads(1)
print(repr(mean_nll(load_model(sys.argv[1]), Rows(load_from_disk(sys.argv[2])))[0]))
"""


def test_a_teacher_reloaded_in_a_fresh_process_scores_what_it_scored_when_saved(tmp_path):
    small = {
        **SMALL,
        "teacher__lessons": [[{"budget": {"kind": "steps", "amount": 3, "batch_size": 8}}]],
        "data_frac": 1.0,
    }
    cells = harness.grid(method="kd", **small)
    done = harness.run(cells, store=str(tmp_path / "store"), grid="g", launch=Launch(kind="inline"))
    store = Store(tmp_path / "store")
    frozen = json.loads((done.folder / "plan.json").read_text())
    teacher = next(
        key for key, spec in frozen["stages"].items() if (spec["kind"], spec["name"]) == ("train", "teacher_weak")
    )
    saved = store.manifest(teacher)["facts"]["metrics"]["validation_nll"]
    rows = store.folder(store.manifest(teacher)["inputs"]["subset"]) / "validation"
    for seed in ("0", "1"):  # sets and dicts of text come in another order in every process
        answer = subprocess.run(
            [sys.executable, "-c", RELOAD, str(store.folder(teacher)), str(rows)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert float(answer.stdout) == saved, answer.stderr
