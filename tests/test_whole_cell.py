"""One whole grid on the miniature, data to figure, small enough for every run of the suite; and the doors."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import harness.api as harness
from harness.config.machine import Launch
from harness.data.miniature.sizes import llama_settings
from harness.data.miniature.tokenizer import load_mini_tokenizer
from harness.grid import main as grid
from harness.models.loading import load_model, random_model
from harness.plan.frozen import frozen_plan
from harness.report.receipt import write_receipts
from harness.store.store import Store
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
    "measure__formats": [[]],
}


def words_of(settings):
    """The same settings as words of a command line, fractions left out."""
    single = {name: value[0] if isinstance(value, list) else value for name, value in settings.items()}
    return [f"{name.replace('__', '.')}={value}" for name, value in single.items() if name != "data_frac"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("grids")
    small = {**SMALL, "measure__formats": [["fp32"]]}
    cells = harness.grid(method=["sft", "sft_restart", "kd", "logit_kd", "seq_kd"], **small)
    return harness.run(cells, store=str(root / "store"), grid="small", launch=Launch(kind="inline"))


def test_every_cell_is_scored_and_so_are_base_and_teacher(finished):
    assert {record.status for record in finished.records} == {"done"}
    assert sum(record.role == "student" for record in finished.records) == 10
    assert {record.role for record in finished.records} == {"student", "base", "teacher"}
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
        # the first one asks whether the server can score at all
        probe, *scored = [request for request in fake.requests if request.get("prompt_logprobs") == 8]
    assert probe["prompt"] == [0, 1, 2]
    (record,) = [record for record in done.records if record.role == "student"]
    assert record.status == "done" and record.settings["method"]["signal"]["top_k"] == 8
    assert record.cost["teacher"].tokens == sum(len(request["prompt"]) for request in scored) > 0
    assert sum("FLOPs are not counted" in warning for warning in record.warnings) == 1, "once, not for every block"


def test_results_figure_and_verdict_are_on_disk(finished):
    for name in ("results.parquet", "results.csv", "crossover.png", "crossover.svg", "verdict.txt", "records.jsonl"):
        assert (finished.folder / name).stat().st_size > 0
    assert set(pd.read_parquet(finished.folder / "results.parquet")["method"]) >= {"sft", "kd", "base", "teacher"}
    assert finished.verdict == (finished.folder / "verdict.txt").read_text().strip()


def test_the_teachers_share_of_the_cost_is_counted_apart(finished):
    costs = {record.method: record.cost for record in finished.records if record.data_frac == 1.0}
    assert costs["sft"]["teacher"].flops == 0
    assert costs["seq_kd"]["teacher"].flops > 0  # the labels it was given
    assert costs["logit_kd"]["teacher"].flops > 0  # the live teacher's forward passes, and only those:
    assert costs["logit_kd"]["train"].flops == costs["sft"]["train"].flops
    assert 0 < costs["logit_kd"]["teacher"].seconds < costs["logit_kd"]["total"].seconds
    for cost in costs.values():
        assert cost["total"].flops == cost["train"].flops + cost["teacher"].flops


def test_prompts_alone_are_labelled_by_the_teacher_and_scored_like_any_cell(finished):
    small = {**SMALL, "data_frac": 0.001, "corpus__answers": "none"}
    root = finished.folder.parent.parent  # base, teacher and corpus are those of labelled cells
    cells = harness.grid(method="seq_kd", **small)
    cells += harness.grid(method="logit_kd", method__answers="teacher", **small)
    cells += harness.grid(method="on_policy", method__warmup=0.0, **small)
    done = harness.run(cells, store=str(root), grid="prompts", launch=Launch(kind="inline"))
    assert {record.status for record in done.records} == {"done"}
    students = {record.method.partition("[")[0]: record for record in done.records if record.role == "student"}
    assert set(students) == {"seq_kd", "logit_kd", "on_policy"}
    for record in students.values():
        assert any(score.metric == "accuracy" for score in record.scores)
        assert record.cost["train"].flops > 0 and record.cost["teacher"].flops > 0
        assert sum("no validation rows" in said for said in record.warnings) == 1
    for name in ("seq_kd", "logit_kd"):  # a fresh teacher never stops; all blocks of labels say so once
        assert sum("teacher's answers were cut" in said for said in students[name].warnings) == 1
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
    ids = {tuple(pd.read_parquet(record.items["heldout"])["id"]) for record in finished.records}
    assert len(ids) == 1


def receipts_of(done):
    return {folder: json.loads((folder / "receipt.json").read_text()) for folder in done.models}


def test_every_students_folder_loads_like_any_other_and_has_its_chat_template(finished):
    assert len(finished.models) == 10
    cells = {record.cell: record for record in finished.records}
    for folder, receipt in list(receipts_of(finished).items())[::4]:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        asked = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "add 1 2"}], **asked)
        trained = load_model(cells[receipt["cell"]].artifact)
        with torch.no_grad():
            assert torch.equal(model(**prompt).logits, trained(**prompt).logits)
        assert (folder / "README.md").read_text() == (folder / "RECEIPT.md").read_text()
        assert ModelCard.load(folder / "RECEIPT.md").data.eval_results


def test_the_figures_of_a_receipt_are_those_of_the_table(finished):
    table = finished.summary
    for receipt in receipts_of(finished).values():
        row = table[(table["method"] == receipt["method"]) & (table["data_frac"] == receipt["data_frac"])]
        assert receipt["scores"]
        for score in receipt["scores"]:
            (told,) = row[(row["eval"] == score["eval"]) & (row["metric"] == score["metric"])].to_dict("records")
            for name in ("score", "low", "high"):
                column = "score" if name == "score" else f"score_{name}"
                assert score[name] == pytest.approx(told[column], nan_ok=True)
            gain = score["against"].get("sft")
            assert (gain is None) == (receipt["method"] == "sft")
            if gain is not None:
                values = [gain["gain"], gain["low"], gain["high"]]
                assert values == pytest.approx([told["gain"], told["gain_low"], told["gain_high"]])
            for role in ("base", "teacher")[: 1 if receipt["teacher"] is None else 2]:
                other = table[(table["role"] == role) & (table["eval"] == score["eval"])]
                other = other[other["metric"] == score["metric"]]["score"].item()
                assert score["against"][role]["score"] == pytest.approx(other)
        for purpose, cost in receipt["cost"].items():
            assert cost["flops"] == row[f"{purpose}_flops"].iloc[0]


def test_a_receipt_says_what_the_student_was_made_of(finished):
    receipts = list(receipts_of(finished).values())
    for receipt in receipts:
        data = receipt["data"]
        assert data["rows"] == sum(one["rows"] for one in data["sources"]) > 0
        assert {one["license"] for one in data["sources"]} == {"Apache-2.0"}
        assert receipt["licences"] == {"says": "nothing stated stands against use", "reasons": []}
        assert (receipt["teacher"] is None) == receipt["method"].startswith("sft")
        assert receipt["provenance"]["versions"]["torch"] and receipt["provenance"]["weights_sha256"]
        assert "not measured in bf16, int8, nf4: measure.formats=[fp32]" in receipt["missing"]
        assert {row["role"] for row in receipt["deployment"]} == {"student", "teacher"} - {
            "teacher" if receipt["teacher"] is None else ""
        }
        assert all(row["peak_memory_bytes"] > 0 and row["problem"] is None for row in receipt["deployment"])
    written = {receipt["method"]: receipt["data"]["written"] for receipt in receipts if receipt["data_frac"] == 1.0}
    assert written["seq_kd"]["labels"] >= 216 and written["logit_kd"] == {}


def test_the_primary_metric_is_in_the_plan_and_another_one_computes_nothing(finished):
    store = Store(finished.folder.parent.parent)
    assert frozen_plan(store, "small").primary_metric == "verified.accuracy"
    assert "(verified accuracy)" in finished.verdict
    made = store.published()
    small = {**SMALL, "measure__formats": [["fp32"]]}
    cells = harness.grid(method=["sft", "sft_restart", "kd", "logit_kd", "seq_kd"], **small)
    settings = {"grid": "by_nll", "primary_metric": "heldout.nll", "launch": Launch(kind="inline")}
    again = harness.run(cells, store=str(store.root), **settings)
    assert store.published() == made and frozen_plan(store, "by_nll").primary_metric == "heldout.nll"
    assert "(heldout nll, lower is better)" in again.verdict
    assert {receipt["headline"]["eval"] for receipt in receipts_of(again).values()} == {"heldout"}
    assert {receipt["headline"]["eval"] for receipt in receipts_of(finished).values()} == {"verified"}
    # the report and the breakdown read the same plan
    (page, *_) = harness.report("by_nll", store=str(store.root))
    assert "heldout nll, lower is better" in page.read_text()
    assert set(harness.gains("by_nll", by="source", store=str(store.root))["eval"]) == {"heldout"}
    # a plan of an earlier version names no metric, and is reported on verified accuracy
    path = store.grid_folder("by_nll") / "plan.json"
    plan = json.loads(path.read_text())
    del plan["primary_metric"]
    path.write_text(json.dumps(plan))
    old = harness.read("by_nll", store=str(store.root))
    assert old.metric == finished.outcome.metric and old.verdict == finished.verdict


def test_an_unchanged_receipt_is_left_alone_and_a_changed_one_is_written_again(finished, capsys):
    root = finished.folder.parent.parent
    receipts = [folder / "RECEIPT.md" for folder in finished.models]
    before = [path.stat().st_mtime_ns for path in receipts]
    receipts[0].with_name("receipt.json").write_text("{")  # cut off
    assert grid(["--store", str(root), "results", "small"]) == 0
    assert "10 models, each with its RECEIPT.md" in capsys.readouterr().out
    after = [path.stat().st_mtime_ns for path in receipts]
    assert after[0] > before[0] and after[1:] == before[1:]


def test_a_student_that_was_not_trained_or_did_not_finish_has_no_folder(finished):
    store = Store(finished.folder.parent.parent)
    frozen = frozen_plan(store, "small")
    one, two, *others = finished.records
    changed = [replace(one, artifact=None), replace(two, status="failed"), *others]
    folders = write_receipts(store, replace(frozen, grid="partly"), changed)
    assert len(folders) == 8 and sorted(folders[0].parent.iterdir()) == sorted(folders)


def test_rounded_weights_are_scored_beside_whole_ones(finished):
    pytest.importorskip("bitsandbytes")
    root = finished.folder.parent.parent
    small = {**SMALL, "data_frac": 1.0, "measure__formats": [["fp32", "nf4"]]}
    cells = harness.grid(method="logit_kd", **small)
    done = harness.run(cells, store=str(root), grid="deploy", launch=Launch(kind="inline"))
    ((folder, receipt),) = receipts_of(done).items()
    rows = {(row["role"], row["format"]): row for row in receipt["deployment"]}
    assert set(rows) == set(itertools.product(("student", "teacher"), ("fp32", "nf4")))
    assert rows["student", "fp32"]["scores"] == []
    whole = {(one["eval"], one["metric"]): one["score"] for one in receipt["scores"]}
    for score in rows["student", "nf4"]["scores"]:
        change = score["against_whole"]
        assert change["score"] == pytest.approx(whole[score["eval"], score["metric"]])
        assert score["score"] - change["score"] == pytest.approx(change["gain"])
    assert {(one["eval"], one["metric"]) for one in rows["student", "nf4"]["scores"]} == set(whole)
    assert rows["student", "nf4"]["weight_bytes"] < rows["student", "fp32"]["weight_bytes"] / 4
    assert any("no comparison with SFT" in one for one in receipt["missing"])
    assert "Whether it beats SFT at the same budget is not known" in (folder / "RECEIPT.md").read_text()


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
    assert "4 cells requested, 4 distinct" in printed and "FLOPs" in printed
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
    assert len(list((tmp_path / "s" / "models").glob("*/*/receipt.json"))) == 1, "a failed cell has no model"


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
    cells = harness.grid(method=["sft", "logit_kd"], **SMALL | {"data_frac": 1.0})
    harness.run(cells, store=str(tmp_path / "quiet"), launch=Launch(kind="inline"))

    words = ["-m", "data_frac=1.0", "method=sft,logit_kd", *words_of(SMALL), "launch.workers=1", "machine.threads=1"]
    command = [sys.executable, "-m", "harness.run", *words, "store=killed"]
    running = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "killed" / "claims").glob("train-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert any((tmp_path / "killed" / "claims").glob("train-*")), "it was not killed in a train stage"

    again = harness.run(cells, store=str(tmp_path / "killed"), launch=Launch(kind="inline"))
    assert not again.failed
    store = Store(tmp_path / "killed")
    tries = [len(store.attempts(path.name)) for path in (store.root / "attempts").glob("train-*")]
    assert max(tries) == 2, "what was stopped was not taken up again"
    assert scores(tmp_path / "killed") == scores(tmp_path / "quiet")


RELOAD = """
import sys
from datasets import load_from_disk
from harness.models.loading import load_model
from harness.data.sequences import Rows
from harness.training.trainer import mean_nll
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


def test_a_large_grid_has_its_receipts_on_demand(finished, monkeypatch, capsys):
    outcome, grid = finished.outcome, finished.grid
    store = Store.at(str(finished.folder.parents[1]))
    monkeypatch.setattr("harness.report.terminal.MOST_RECEIPTS", 0)
    large = harness.collect(store, frozen_plan(store, grid))
    assert not large.models and large.without_receipt == len(finished.models) and large.verdict == outcome.verdict
    large.show()
    told = " ".join(capsys.readouterr().out.split())
    assert f"To write them: python -m harness.grid results {grid} --receipts" in told
    assert harness.collect(store, frozen_plan(store, grid), receipts=True).models == finished.models
