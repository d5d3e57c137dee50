"""Two families of minis in one grid: what crosses between them, and what is refused because it cannot.

Their tokenizers are tested in `data/miniature/test_tokenizer.py`, the losses across tokenizers in
`training/losses/test_cross_tokenizer.py`.
"""

import json
import math
from dataclasses import astuple

import pandas as pd
import pytest

import harness.api as harness
from harness.config.checks import SettingsError
from harness.config.machine import Launch, Machine
from harness.config.model import Model
from harness.data.chat import answer_ids_many
from harness.data.miniature.tokenizer import FAMILIES, load_mini_tokenizer
from harness.execution.model_checks import check_model
from harness.execution.preflight import preflight
from harness.models.files import tokenizer_json_fingerprint
from harness.models.kinds import model_of
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.compose import compose
from harness.plan.frozen import freeze
from harness.stages.labels import make_labels
from harness.store.store import Store

SMALL = {
    "data_frac": 0.0002,
    "corpus__rows": 240,
    "corpus__heldout_per_source": 2,
    "student__init": "random",
    "teacher__init": "random",
    "teacher__lessons": [[]],
    "evals__names": [["heldout"]],
    "budget__amount": 5,
    "budget__batch_size": 8,
    "measure__formats": [[]],
}


def cells(*words):
    return compose(list(words)).cells


def check(*words):
    plan = Plan.of(cells(*words))
    preflight(plan)
    return plan


def families(plan):
    """Families of the base models that a plan makes."""
    return {stage.settings.get("family", "words") for stage in plan.stages if stage.kind == "base"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    grid = harness.grid(method="seq_kd", teacher="letters", **SMALL)
    grid += harness.grid(method="cross_kd", method__loss=["spans", "uld"], teacher="letters", **SMALL)
    grid += harness.grid(method="seq_kd", teacher="weak", student__family="letters", **SMALL)
    return harness.run(grid, store=str(root), grid="families", launch=Launch(kind="inline"))


def stages_of(finished, kind):
    """What every stage of a kind left, in plan order: its spec, its folder, the facts of its manifest."""
    store = Store(finished.folder.parent.parent)
    specs = json.loads((finished.folder / "plan.json").read_text())["stages"].items()
    return [(spec, store.folder(key), store.manifest(key)["facts"]) for key, spec in specs if spec["kind"] == kind]


def test_words_and_judgement_cross_from_one_family_to_the_other(finished):
    assert {record.status for record in finished.records} == {"done"}
    assert sum(record.role == "student" for record in finished.records) == 4
    trained = stages_of(finished, "train")
    assert len(trained) == 4
    for _, _, facts in trained:
        assert math.isfinite(facts["metrics"]["last_loss"]) and facts["metrics"]["last_loss"] > 0
    crossed = [facts for spec, _, facts in trained if spec["settings"]["stage"]["divergence"] in ("spans", "uld")]
    assert len(crossed) == 2
    for facts in crossed:
        assert facts["metrics"]["aligned_share"] == 1.0 and facts["counts"]["rows_left_out"] == 0
        assert facts["cost"]["teacher_tokens"] > facts["counts"]["read_tokens"], "a row is longer in letters"


def test_no_row_of_either_family_is_cut(finished):
    subsets = stages_of(finished, "subset")
    lengths = {json.loads((folder / "subset.json").read_text())["tokenizer_hash"] for _, folder, _ in subsets}
    assert len(lengths) == 2
    assert sum(facts["counts"]["truncated_rows"] + facts["counts"]["dropped_rows"] for _, _, facts in subsets) == 0


def test_a_student_reads_what_the_other_family_wrote_marks_and_all(finished):
    from datasets import load_from_disk

    texts = []
    for spec, folder, _ in stages_of(finished, "labels"):
        labels = load_from_disk(folder / "labels")
        other = "words" if "letters" in spec["name"] else "letters"
        tokenizer = load_mini_tokenizer(other)
        ids = answer_ids_many(tokenizer, labels["text"], [False] * len(labels))
        assert [tokenizer.decode(one) for one in ids] == labels["text"]
        texts += labels["text"]
    # untrained teachers write marks where none belong; they reach the student as the characters they are
    marks = [mark for family in FAMILIES.values() for mark in astuple(family.marks)]
    assert any(mark in text for text in texts for mark in marks)


def test_the_receipt_names_the_family_where_it_is_not_the_usual_one(finished):
    told = [json.loads((folder / "receipt.json").read_text()) for folder in finished.models]
    families = [(one["student"].get("family"), one["teacher"].get("family")) for one in told]
    assert sorted(families, key=str) == [("letters", None), *[(None, "letters")] * 3]
    tidy = pd.DataFrame([record.settings["student"] for record in finished.records if record.role == "student"])
    assert tidy["family"].dropna().tolist() == ["letters"]


@pytest.mark.parametrize("method", ["kd", "feature_kd"])
def test_a_method_that_needs_one_vocabulary_is_refused_across_families(method):
    with pytest.raises(SettingsError, match=r"teacher='letters'.*its tokenizer is not that of student=mini"):
        check(f"method={method}", "teacher=letters")


def test_what_crosses_passes_and_so_does_a_pair_of_the_other_family():
    crossing = check("method=seq_kd,cross_kd", "teacher=letters,weak")
    assert families(crossing) == {"words", "letters"} and len(crossing.cells) == 4
    alike = check("method=kd,feature_kd,seq_kd,cross_kd", "teacher=letters", "student.family=letters")
    assert families(alike) == {"letters"} and len(alike.cells) == 4


def test_a_teacher_of_another_family_answers_visited_rows_in_its_own_tokens(finished, tmp_path):
    # a teacher with more ids than the student once answered the student's, and the cell trained on what it said
    visited = ["method=seq_kd", "teacher.label_rows=visited"]
    roles = {
        name: set(label.inputs)
        for name in ("weak", "letters")
        for label in check(*visited, f"teacher={name}").cells[0].teaching
    }
    assert roles == {"weak": {"rows", "teacher"}, "letters": {"rows", "teacher", "teacher_reading"}}
    words, own = model_of(Model(name="m")).tokenizer_fingerprint(), f"mini-{SMALL['data_frac']:g}-s0"
    (rows,) = [
        folder
        for spec, folder, _ in stages_of(finished, "subset")
        if spec["name"] == own and json.loads((folder / "subset.json").read_text())["tokenizer_hash"] == words
    ]
    (teacher,) = [folder for spec, folder, _ in stages_of(finished, "base") if spec["name"] == "letters"]
    with pytest.raises(SettingsError, match=r"label_rows='visited'.*in the student's tokens.*label_rows=blocks"):
        make_labels({}, {"rows": rows, "teacher": teacher}, tmp_path, Machine(device="cpu"))


def test_an_unknown_family_and_a_family_of_another_kind_of_model_are_refused():
    with pytest.raises(SettingsError, match=r"student\.family='runes'.*words, letters") as said:
        Model(name="student", family="runes")
    assert "\n" not in str(said.value)
    with pytest.raises(SettingsError, match=r"t\.family='letters'.*only models of kind=mini have a family"):
        Model(name="t", kind="hf", path="org/name", family="letters")
    Model(name="t", kind="hf", path="org/name")


def test_conversations_that_letters_could_only_read_cut_are_refused_until_there_is_room():
    lesson = "{corpus: {kind: mini, dialogues: 1.0MORE}, budget: {amount: 5}}"
    words = ["method=seq_kd", "teacher=letters"]
    with pytest.raises(SettingsError, match=r"corpus\.max_length=128.*264 tokens of the family letters.*set it to 264"):
        check(*words, f"teacher.lessons=[{lesson.replace('MORE', '')}]")
    check(*words, f"teacher.lessons=[{lesson.replace('MORE', ', max_length: 264')}]")
    with pytest.raises(SettingsError, match=r"corpus\.max_length=128"):
        check("method=sft", "student.family=letters", "corpus.dialogues=0.5")
    check("method=sft", "corpus.dialogues=0.5")


def test_a_mini_of_the_usual_family_is_named_as_it_was_before_there_were_two():
    words, letters = (Model(name="m", init_seed=0, family=family) for family in ("words", "letters"))
    assert "family" not in model_of(words).identity(0)
    assert model_of(letters).identity(0) == model_of(words).identity(0) | {"family": "letters"}
    fresh = [Model(name="m", init="random", init_seed=0, family=family) for family in ("words", "letters")]
    assert model_of(fresh[0]).identity(0) != model_of(fresh[1]).identity(0)
    check_model(letters)
    (frozen,) = freeze(Plan.of(cells("method=kd")), "g").cells
    assert not any("family" in frozen.settings[role] for role in ("student", "teacher"))
    (plain,), (spelt,) = cells("method=kd"), cells("method=kd", "student.family=words", "teacher.family=words")
    assert plan_cell(plain).fingerprint == plan_cell(spelt).fingerprint


def test_another_family_is_another_address_and_has_a_name_of_its_own_in_the_table():
    plan = Plan.of(cells("method=sft", "student.family=words,letters"))
    assert len(plan.cells) == 2
    assert [cell.student for cell in freeze(plan, "g").cells] == ["mini", "mini[family=letters]"]


@pytest.mark.parametrize("family", ["words", "letters"])
def test_the_hash_known_before_anything_is_built_is_that_of_what_is_built(family, tmp_path):
    load_mini_tokenizer(family).save_pretrained(tmp_path)
    built = tokenizer_json_fingerprint((tmp_path / "tokenizer.json").read_text())
    assert model_of(Model(name="m", family=family)).tokenizer_fingerprint() == built
    other = "letters" if family == "words" else "words"
    assert model_of(Model(name="m", family=other)).tokenizer_fingerprint() != built
