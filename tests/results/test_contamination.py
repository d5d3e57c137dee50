"""Items that training rows repeat, from a corpus with copies planted in it to the record; counted, told, dropped."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk

import harness.api as harness
from harness.config.cell import Launch
from harness.config.checks import SettingsError
from harness.evals.benchmarks import data_files, load_benchmark
from harness.evals.lm_evaluation.tasks import Data, item_texts
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.frozen import FrozenPlan, frozen_plan
from harness.results.breakdown import items as items_of
from harness.results.contamination import ROWS, Contamination, _warnings, training_of
from harness.results.exposure import Exposures
from harness.results.records import MEMORY, RepeatedItems
from harness.stages.labels import save_rows
from harness.stages.overlap import make_overlap
from harness.stand_ins.benchmark_items import ITEMS, write_items
from harness.store.store import Store
from tests.doubles import save_tiny
from tests.invented_records import frozen_cell
from tests.stages.small_world import TOKENIZER, pair, run, small_world

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[evals]'")

THINGS = ("garlic", "walking uphill", "a warm bath", "reading aloud")
ASKED = [
    {
        "pubid": thing,
        "question": f"Does {thing} help old people to sleep through the night?",
        "contexts": [f"We gave {thing} to {n}0 people in a village near Sparta.", f"After {n} weeks we asked them."],
        "final_decision": "yes",
    }
    for n, thing in enumerate(THINGS, 3)
]


def asks(n):
    return f"{' '.join(ASKED[n]['contexts'])} {ASKED[n]['question']}"


def rows(path, *prompts):
    """A corpus of forty harmless rows, and these prompts."""
    harmless = [f"Sum up chapter {n} of the book about {n} horses and their {n + 1} riders." for n in range(40)]
    messages = [pair(prompt, "yes") for prompt in (*harmless, *prompts)]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in messages))
    return str(path)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Settings of a grid in which item 0 and 1 are the student's, and 2 the teacher's alone."""
    root = tmp_path_factory.mktemp("contamination")
    save_tiny(root / "student")
    (root / "pubmedqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ASKED))
    copies = f"Hm! {asks(0).upper()}".replace(".", " ..."), f"Please read this. {asks(1)} Answer in a word."
    lesson = {"kind": "jsonl", "path": rows(root / "lesson.jsonl", asks(2)), "heldout_rows": 4}
    return {
        "corpus": "jsonl",
        "corpus__path": rows(root / "rows.jsonl", *copies),
        "corpus__heldout_rows": 4,
        "student": "hf",
        "student__path": str(root / "student"),
        "student__init": "random",
        "teacher": "hf",
        "teacher__path": str(root / "student"),
        "teacher__init": "random",
        "teacher__lessons": [[{"corpus": lesson, "budget": {"kind": "steps", "amount": 1, "batch_size": 4}}]],
        "evals__names": [["heldout", "pubmedqa"]],
        "evals__data_dir": str(root),
        "budget__amount": 1,
        "budget__batch_size": 4,
    }


@pytest.fixture(scope="module")
def counted(asked, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    cells = harness.grid(method=["sft", "logit_kd"], **asked)
    return harness.run(cells, store=str(store), grid="counted", launch=Launch(kind="inline")), store


def by_method(records):
    return {record.method: record for record in records}


def test_copies_in_the_rows_are_counted_by_whose_rows_they_are_in(counted):
    records = by_method(counted[0].records)
    found = {name: asdict(record.contamination["pubmedqa"]) for name, record in records.items()}
    assert {record.status for record in records.values()} == {"done"}
    wanted = ("items", "own", "student_rows", "teacher_rows", "teacher_only", "synthetic_rows", "in_context_rows")
    assert [found["sft"][name] for name in wanted] == [4, 2, 2, 0, 0, 0, 0]
    assert [found["logit_kd"][name] for name in wanted] == [4, 2, 2, 1, 1, 0, 0]
    assert [found["teacher"][name] for name in wanted] == [4, 1, 1, 0, 0, 0, 0]
    assert [found["base"][name] for name in wanted] == [4, 0, 0, 0, 0, 0, 0]
    assert records["sft"].contamination["heldout"].own == 0


def test_scores_are_told_without_the_copies_and_a_sentence_warns_of_them(counted):
    record = by_method(counted[0].records)["logit_kd"]
    scores = pd.read_parquet(record.items["pubmedqa"]).set_index("id")["score"]
    metric = load_benchmark("pubmedqa").column
    assert record.contamination["pubmedqa"].without == {metric: pytest.approx(scores[["2", "3"]].mean())}
    said = [warning for warning in record.warnings if warning.startswith("contamination")]
    assert said[0].startswith(f"contamination: 2 of 4 items of pubmedqa are repeated in training rows; {metric} is ")
    assert "1 of 4 items of pubmedqa are repeated in rows that only the teacher" in said[1] and len(said) == 2
    assert "contamination: 2 of 4" in "".join(counted[0].summary["warnings"])


def test_exposure_of_a_benchmarks_items_follows_from_the_copies(counted):
    done, store = counted
    frame = harness.items("counted", str(store)).query("eval == 'pubmedqa' and role == 'student'")
    exposure = frame.pivot(index="id", columns="method", values="exposure")
    assert list(exposure["logit_kd"]) == ["student", "student", "teacher", "neither"]
    assert list(exposure["sft"]) == ["student", "student", "neither", "neither"]
    frozen = frozen_plan(Store(store), "counted")
    frozen = replace(frozen, cells=tuple(replace(cell, overlaps=()) for cell in frozen.cells))
    unknown = items_of(done.records, Exposures(Store(store), frozen)).query("role == 'student'")
    assert set(unknown.query("eval == 'pubmedqa'")["exposure"]) == {"unknown"}
    assert set(unknown.query("eval == 'heldout'")["exposure"]) == {"neither"}


def test_rows_are_dropped_on_request_and_nothing_is_left_to_count(asked, counted):
    cells = harness.grid(method="logit_kd", evals__overlap="drop", **asked)
    done = harness.run(cells, store=str(counted[1]), grid="dropped", launch=Launch(kind="inline"))
    for record in done.records:
        assert record.contamination["pubmedqa"].own == record.contamination["pubmedqa"].teacher_only == 0
    kd = by_method(done.records)["logit_kd"]
    assert kd.status == "done" and "rows left out: 2, it repeats an item that is scored" in kd.warnings
    store, frozen = Store(counted[1]), frozen_plan(Store(counted[1]), "dropped")
    folders = [store.folder(key) for key, spec in frozen.stages.items() if spec["kind"] == "subset"]
    told = [json.loads((folder / "subset.json").read_text())["dropped"] for folder in folders]
    assert sorted(map(str, told)) == [f"{{'it repeats an item that is scored': {n}}}" for n in (1, 2)]


def test_only_dropping_changes_an_address(asked):
    def plans(overlap):
        return [plan_cell(one) for one in harness.grid(method=["sft", "logit_kd"], evals__overlap=overlap, **asked)]

    count, drop, none = map(plans, ("count", "drop", "none"))
    assert [one.fingerprint for one in count] == [one.fingerprint for one in none]
    assert not {one.fingerprint for one in count} & {one.fingerprint for one in drop}
    assert [len(one.overlaps) for one in count] == [1, 2] and not any(one.overlaps for one in none)
    mine, lessons = count[1].overlaps
    assert (
        mine.inputs["rows"] is not lessons.inputs["rows"]
        and mine.inputs["heldout"].key == lessons.inputs["heldout"].key
    )
    with pytest.raises(SettingsError, match=r"evals\.overlap='maybe' .*count, drop, none"):
        harness.grid(evals__overlap="maybe")


def test_a_grid_compares_each_mixture_once_and_each_set_of_synthetic_rows():
    cells = harness.grid(
        method=["sft", "kd", "two_stage"], data_frac=[0.1, 1.0], seed=[0, 1], teacher=["weak", "strong"]
    )
    stages = [stage for stage in Plan.of(cells).stages if stage.kind == "overlap"]
    rows = sorted(stage.inputs["rows"].kind for stage in stages)
    assert rows == ["mixture"] * 2 + ["synthesize"] * 8  # of a teacher, a fraction and a seed each
    assert all(("tokenizer" in stage.inputs) == (stage.inputs["rows"].kind == "synthesize") for stage in stages)


def test_dropping_reaches_what_a_teacher_writes(tmp_path):
    (cell,) = harness.grid(method="two_stage", evals__overlap="drop")
    (written,) = [stage for stage in plan_cell(cell).train[0].ancestry() if stage.kind == "synthesize"]
    assert written.inputs["overlap"].inputs["rows"].kind == "mixture"
    from harness.stages.overlap import read_items
    from harness.stages.synthesis.filters import Candidate, Judge, Limits

    settings = {"size": 8, "share": 0.5, "benchmarks": {}, "where": {"files": {}}}
    world = small_world(tmp_path)
    run(make_overlap, settings, {"rows": world["mixture"], "heldout": world["mixture"]}, tmp_path, "overlap")
    judge = Judge(Limits(), [], [], [], read_items(tmp_path / "overlap"))
    assert judge.reason(Candidate("Then what?", "Say: HELLO!")) == "repeats a scored item"
    assert judge.reason(Candidate("Then what?", "Say hello to him")) == ""


def test_synthetic_rows_are_read_back_from_their_tokens(tmp_path):
    world = small_world(tmp_path)
    rendered = load_from_disk(world["subset"] / "train").select(range(2)).to_list()
    prompt, answer = TOKENIZER.encode("<|user|>Well, SAY hello<|assistant|>"), TOKENIZER.encode("hello<|end|>")
    rendered.append({"row": -1, "id": "s", "input_ids": prompt + answer, "starts": [len(prompt)], "ends": [99]})
    rendered[-1]["ends"] = [len(prompt + answer)]
    save_rows({name: [row[name] for row in rendered] for name in rendered[0]}, tmp_path / "written" / "synthetic")
    inputs = {"rows": tmp_path / "written", "tokenizer": world["start"], "heldout": world["mixture"]}
    settings = {"size": 8, "share": 0.5, "benchmarks": {}, "where": {"files": {}}}
    facts, folder = run(make_overlap, settings, inputs, tmp_path, "overlap")
    assert pd.read_parquet(folder / "pairs.parquet")[["row", "item"]].to_numpy().tolist() == [[2, 0]]
    assert facts["counts"] == {"rows": 3, "overlapping_rows": 1, "heldout.items": 1, "heldout.overlapped": 1}


def by_hand(tmp_path, pairs, synthetic=(), revisions=None):
    """A cell of ten rows, which are the even ones of its mixture, taught by rows it wrote after seeing them."""
    store = Store.open(tmp_path / "store")

    def publish(key, write=lambda folder: None, **facts):
        with store.scratch(key) as out:
            write(out)
            store.publish(key, out, {"facts": facts})

    def overlap(found):
        def write(folder):
            table = {name: [f"{name}{n}" for n in range(6)] for name in ("source", "id", "prompt_hash", "words")}
            pd.DataFrame({"eval": ["gsm8k"] * 6, **table}).to_parquet(folder / "items.parquet")
            columns = {"row": [row for row, _ in found], "item": [item for _, item in found]}
            pd.DataFrame(columns, dtype="int64").assign(share=1.0).to_parquet(folder / "pairs.parquet")

        return write

    publish("overlap-m", overlap(pairs), resolved={"data_revisions": revisions or {}})
    publish("overlap-s", overlap(synthetic), resolved={"data_revisions": revisions or {}})
    columns = {"row": list(range(0, 20, 2)), "id": [""] * 10}
    columns |= {name: [[1]] * 10 for name in ("input_ids", "starts", "ends")}
    publish("subset-s", lambda folder: save_rows(columns, folder / "train"))
    publish("synthesize-s")
    publish("evaluate-s", resolved={"data_revision": "new"})

    def stage(kind, inputs):
        return {"kind": kind, "inputs": inputs}

    stages = {
        "mixture-m": stage("mixture", {}),
        "base-s": stage("base", {}),
        "base-t": stage("base", {}),
        "quantise-t": stage("quantise", {"model": "base-t"}),
        "subset-s": stage("subset", {"mixture": "mixture-m"}),
        "synthesize-s": stage("synthesize", {"subset": "subset-s", "mixture": "mixture-m", "teacher": "quantise-t"}),
        "train-1": stage("train", {"subset": "subset-s", "start": "base-s", "synthetic": "synthesize-s"}),
        "train-2": stage("train", {"subset": "subset-s", "start": "train-1", "teacher": "quantise-t"}),
        "evaluate-s": stage("evaluate", {"model": "train-2"}),
        "overlap-m": stage("overlap", {"rows": "mixture-m"}),
        "overlap-s": stage("overlap", {"rows": "synthesize-s"}),
    }
    train, overlaps = ("train-1", "train-2"), ("overlap-m", "overlap-s")
    cell = frozen_cell(evaluations={"gsm8k": "evaluate-s"}, train=train, overlaps=overlaps)
    assert training_of(stages, "train-2") == (("subset-s",), ("synthesize-s",), "base-s")
    assert training_of(stages, "quantise-t") == ((), (), "base-t")
    return Contamination(store, FrozenPlan("g", stages, (cell,))), cell


def test_a_cell_has_the_copies_of_the_rows_it_took_and_of_those_written_for_it(tmp_path):
    contamination, cell = by_hand(tmp_path, [(0, 1), (3, 2), (4, 1), (18, 5)], [(7, 3), (8, 1)])
    flags = contamination.flags(cell, "gsm8k")
    found = {name: np.flatnonzero(flags[name]).tolist() for name in ROWS}
    assert found == {"student_rows": [1, 5], "in_context_rows": [1, 5], "synthetic_rows": [1, 3], "teacher_rows": []}


@pytest.mark.parametrize("lost", ["overlap-s", "subset-s"])
def test_what_is_not_in_the_store_is_not_called_clean(tmp_path, lost):
    contamination, cell = by_hand(tmp_path, [])
    assert contamination.flags(cell, "gsm8k") is not None
    (contamination._store.folder(lost) / "manifest.json").unlink()
    assert contamination.flags(cell, "gsm8k") is None
    found, warnings = contamination.repeated(cell, "gsm8k", [], "")
    assert found is None and warnings == ["contamination: gsm8k was not compared with the training rows"]


@pytest.mark.parametrize(("revision", "known"), [("new", True), ("old", False)])
def test_items_of_another_revision_are_other_items(tmp_path, revision, known):
    contamination, cell = by_hand(tmp_path, [], revisions={"gsm8k": revision})
    assert (contamination.flags(cell, "gsm8k") is not None) == known


@pytest.mark.parametrize("name", ITEMS)
def test_every_benchmarks_items_have_a_text_under_the_name_they_are_scored_by(name, tmp_path):
    files = tuple(data_files(name, write_items(name, tmp_path)))
    found, revision = item_texts(name, load_benchmark(name), Data(files))
    assert revision is None and len({(source, number) for source, number, _ in found}) == len(found) > 1
    mine = [text for source, _, text in found if source == found[0][0]]
    assert len(set(mine)) == len(mine)
    assert all(isinstance(text, str) and text.strip() for _, _, text in found)


def test_a_benchmark_that_is_mostly_in_the_training_rows_is_said_to_measure_memory():
    def said(own):
        return _warnings("pubmedqa", RepeatedItems(500, own=own, without={"acc": 0.5}), {"acc": 0.9})

    assert said(399) == [
        "memory: 399 of 500 items of pubmedqa are in the training rows: this score measures memory; "
        "acc is 0.900, 0.500 without them"
    ]
    assert said(250)[0].startswith("contamination: 250 of 500") and MEMORY not in said(250)[0]
    assert said(10) == []
