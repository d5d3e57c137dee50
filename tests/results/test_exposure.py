"""What student and teacher were trained on, read from a store made by hand and from one tiny real grid."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

import harness.api as harness
from harness.config.checks import SettingsError
from harness.config.machine import Launch
from harness.data.corpora._rows import prompt_hash
from harness.data.corpora.mini import Corpus
from harness.data.miniature.facts import draw_facts
from harness.data.miniature.lines import pretraining_facts
from harness.data.miniature.sources import SOURCES, Prompt
from harness.grid import main as grid
from harness.plan.frozen import FrozenPlan, frozen_plan
from harness.results.breakdown import items as items_of
from harness.results.exposure import SEEN_BY, Exposures
from harness.store.store import Store
from tests.invented_records import cell, frozen_cell

KNOWN = sorted(draw_facts(0).known_capital)
OTHER = sorted(set(draw_facts(0).capital) - set(KNOWN))
MINI = {"kind": "mini", "init": "pretrained", "knows": "half", "world_seed": 0}
FRESH = {"kind": "mini", "init": "random"}
HUB = {"kind": "hf", "init": "pretrained", "path": "org/name"}


def capital(country, phrasing=0):
    return Prompt("capital", (country,), phrasing).text


def by_hand(tmp_path, student, teacher, rows, lesson, heldout, corpus="mini"):
    """The exposures of a cell whose rows are `rows` of a mixture; the teacher's lesson has `lesson` of the same."""
    store = Store(tmp_path)
    texts = [*rows, *lesson]

    def write(name, prompts):
        folder = store.folder("mixture-m")
        folder.mkdir(parents=True, exist_ok=True)
        turns = [
            [{"role": r, "content": c} for text in p.split("|") for r, c in (("user", text), ("assistant", "x"))]
            for p in prompts
        ]
        pq.write_table(pa.table({"messages": turns, "prompt_hash": [prompt_hash(t) for t in turns]}), folder / name)

    write("train.parquet", texts)
    write("heldout.parquet", heldout)
    for key, numbers in (("subset-s", range(len(rows))), ("subset-t", range(len(rows), len(texts)))):
        folder = store.folder(key) / "train"
        folder.mkdir(parents=True)
        table = pa.table({"row": pa.array(list(numbers), pa.int64())})
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)

    def stage(kind, inputs=None, /, **settings):
        return {"kind": kind, "address": kind, "settings": settings, "inputs": inputs or {}}

    lessons = {"train-t": stage("train", {"subset": "subset-t", "start": "base-t"})} if lesson else {}
    taught = {} if teacher is None else {"labels:1": "labels-l"}
    stages = {
        "mixture-m": stage("mixture", corpus={"kind": corpus}),
        "base-s": stage("base", **student),
        "base-t": stage("base", **(teacher or FRESH)),
        "subset-s": stage("subset", {"mixture": "mixture-m"}),
        "subset-t": stage("subset", {"mixture": "mixture-m"}),
        **lessons,
        "labels-l": stage("labels", {"rows": "subset-s", "teacher": "train-t" if lesson else "base-t"}),
        "train-s": stage("train", {"subset": "subset-s", "start": "base-s", **taught}),
        "evaluate-s": stage("evaluate", {"mixture": "mixture-m", "model": "train-s"}),
    }
    planned = frozen_cell(fingerprint="c", evaluations={"verified": "evaluate-s"}, train=("train-s",))
    found = Exposures(store, FrozenPlan("g", stages, (planned,))).of(cell("kd", 1.0, 0, **{"cell": "c"}))
    return found.loc[[prompt_hash([{"role": "user", "content": text}]) for text in heldout]].reset_index(drop=True)


def test_a_fact_is_the_students_the_teachers_or_nobodys_whatever_its_wording(tmp_path):
    mine, lessons, nobodys, *_ = OTHER
    heldout = [capital(country, 4) for country in (mine, lessons, nobodys)] + ["Sum of 37 and 8?"]
    found = by_hand(tmp_path, MINI, FRESH, [capital(mine), "Add 36 and 8."], [capital(lessons, 1)], heldout)
    assert list(found["exposure"]) == ["student", "teacher", "neither", "neither"]
    assert list(found["student_rows"]) == [True, False, False, False]
    assert list(found["teacher_rows"]) == [False, True, False, False]


def test_what_a_mini_was_told_in_pretraining_counts_as_seen_and_is_told_apart_from_rows(tmp_path):
    heldout = [capital(KNOWN[0], 4), capital(OTHER[0], 4), capital(OTHER[1], 4)]
    found = by_hand(tmp_path, MINI, MINI | {"knows": "all"}, [capital(OTHER[0])], [], heldout)
    assert list(found["exposure"]) == ["student", "student", "teacher"]
    assert list(found["student_rows"]) == [False, True, False]
    assert list(found["student_pretraining"]) == [True, False, False]
    assert found["teacher_pretraining"].all() and not found["teacher_rows"].any()
    pruned = by_hand(tmp_path / "pruned", MINI | {"init": "pruned"}, FRESH, ["Add 36 and 8."], [], heldout)
    assert list(pruned["exposure"]) == ["student", "neither", "neither"]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (FRESH, FRESH, ["student", "teacher", "neither"]),
        (FRESH, HUB, ["student", "teacher", "unknown"]),
        (HUB, FRESH, ["student", "unknown", "unknown"]),
        (HUB | {"init": "random"}, HUB | {"init": "random"}, ["student", "teacher", "neither"]),
        (FRESH, {"kind": "http", "init": "pretrained"}, ["student", "teacher", "unknown"]),
        ({"kind": "gguf", "init": "pruned"}, HUB, ["student", "unknown", "unknown"]),
    ],
)
def test_a_model_whose_training_nobody_here_knows_is_never_called_clean(tmp_path, student, teacher, expected):
    heldout = [capital(country, 4) for country in OTHER[:3]]
    found = by_hand(tmp_path, student, teacher, [capital(OTHER[0])], [capital(OTHER[1])], heldout)
    assert list(found["exposure"]) == expected


def test_without_a_teacher_there_is_nothing_only_the_teacher_has_seen(tmp_path):
    found = by_hand(tmp_path, FRESH, None, [capital(OTHER[0])], [], [capital(c, 4) for c in OTHER[:2]])
    assert list(found["exposure"]) == ["student", "neither"]
    assert not found[["teacher_rows", "teacher_pretraining"]].any(axis=None)


def test_a_student_that_teaches_itself_has_seen_the_same_rows(tmp_path):
    heldout = [capital(country, 4) for country in OTHER[:2]]
    found = by_hand(tmp_path, FRESH, FRESH, [capital(OTHER[0])], [capital(OTHER[0], 1)], heldout)
    assert list(found["exposure"]) == ["student", "neither"] and list(found["teacher_rows"]) == [True, False]


def test_every_turn_of_a_dialogue_is_seen(tmp_path):
    rows = ["Add 36 and 8.|" + capital(OTHER[0])]
    found = by_hand(tmp_path, FRESH, None, rows, [], [capital(OTHER[0], 4), capital(OTHER[1], 4)])
    assert list(found["exposure"]) == ["student", "neither"]


def test_a_corpus_that_cannot_tell_what_is_asked_is_compared_by_prompt_alone(tmp_path):
    rows, heldout = ["Why is the sky blue?", capital(OTHER[0])], ["WHY is the  sky blue?", capital(OTHER[0], 4)]
    found = by_hand(tmp_path, FRESH, None, rows, [], heldout, corpus="jsonl")
    assert list(found["exposure"]) == ["student", "neither"]


def test_rows_that_left_the_store_are_refused_and_not_called_clean(tmp_path):
    by_hand(tmp_path, FRESH, None, ["Add 36 and 8."], [], ["Sum of 37 and 8?"])
    store = Store(tmp_path)
    (store.folder("mixture-m") / "train.parquet").unlink()
    with pytest.raises(SettingsError, match="not in the store"):
        stages = {
            "m": {"kind": "mixture", "settings": {"corpus": {"kind": "mini"}}, "inputs": {}, "address": "mixture-m"},
            "b": {"kind": "base", "settings": FRESH, "inputs": {}},
            "s": {"kind": "subset", "settings": {}, "inputs": {"mixture": "m"}, "address": "subset-s"},
            "t": {"kind": "train", "settings": {}, "inputs": {"subset": "s", "start": "b"}},
            "e": {"kind": "evaluate", "settings": {}, "inputs": {"mixture": "m", "model": "t"}},
        }
        planned = frozen_cell(fingerprint="c", evaluations={"verified": "e"}, train=("t",))
        Exposures(store, FrozenPlan("g", stages, (planned,))).of(cell("kd", 1.0, 0, **{"cell": "c"}))


def test_the_canary_is_never_read_so_it_can_only_match_word_for_word():
    assert Corpus.asks(capital(OTHER[0], 2)) == Corpus.asks(capital(OTHER[0], 3)) == f"capital {OTHER[0]}"
    (secret, *_), *_ = SOURCES["canary"].keys
    assert Corpus.asks(Prompt("canary", (secret,), 0).text) is None


def test_pretraining_tells_half_of_two_kinds_of_facts_or_all_of_four():
    assert pretraining_facts(0, "half") == {f"capital {c}" for c in draw_facts(0).known_capital} | {
        f"coin {c}" for c in draw_facts(0).known_coin
    }
    assert len(pretraining_facts(0, "all")) == 100 + 100 + 100 + 16 * 9


SMALL = {
    "corpus__rows": 1200,
    "corpus__sources": [["capital", "upper"]],
    "corpus__heldout_per_source": 30,
    "student__init": "random",
    "teacher__init": "random",
    "teacher__lessons": [[{"budget": {"kind": "steps", "amount": 2, "batch_size": 8}}]],
    "evals__names": [["verified"]],
    "budget__amount": 2,
    "budget__batch_size": 8,
}


def test_a_tiny_real_grid_is_split_as_its_rows_say(tmp_path, capsys):
    cells = harness.grid(method=["sft", "logit_kd"], data_frac=[0.25], **SMALL)
    done = harness.run(cells, store=str(tmp_path / "store"), grid="g", launch=Launch(kind="inline"))
    store = Store(tmp_path / "store")
    frozen = frozen_plan(store, "g")
    exposures = Exposures(store, frozen)
    mixture = next(store.folder(key) for key, spec in frozen.stages.items() if spec["kind"] == "mixture")
    heldout = pd.read_parquet(mixture / "heldout.parquet").set_index("prompt_hash")["messages"]
    trained = pd.read_parquet(mixture / "train.parquet")["messages"]

    def asked_in(train):
        subset = store.folder(frozen.stages[train]["inputs"]["subset"]) / "train"
        return {Corpus.asks(trained[row][0]["content"]) for row in load_from_disk(subset)["row"]}

    for record in [record for record in done.records if record.role == "student"]:
        (train,) = (one.train[-1] for one in frozen.cells if one.fingerprint == record.cell)
        teacher = frozen.stages[train]["inputs"].get("teacher")
        students, teachers = asked_in(train), asked_in(teacher) if teacher else set()
        for prompt, exposure in exposures.of(record)["exposure"].items():
            question = Corpus.asks(heldout[prompt][0]["content"])
            expected = "student" if question in students else "teacher" if question in teachers else "neither"
            assert exposure == expected
    kinds = harness.items("g", str(store.root)).query("role == 'student'").groupby("method")["exposure"].unique()
    assert {"student", "teacher", "neither"} == set(kinds["logit_kd"])
    assert set(kinds["sft"]) == {"student", "neither"}
    frame = items_of(done.records, exposures)
    assert frame.query("role == 'base'")["exposure"].isna().all() and set(SEEN_BY) < set(frame)
    gains = harness.gains("g", ["exposure", "source"], str(store.root))
    assert set(gains.query("exposure == 'teacher'")["source"]) == {"capital"}
    assert grid(["--store", str(store.root), "results", "g", "--by", "exposure"]) == 0
    assert "accuracy by exposure" in capsys.readouterr().out
    assert grid(["--store", str(store.root), "results", "g", "--by", "mood"]) == 2
    assert "teacher_pretraining" in capsys.readouterr().err
