"""Answers in the rows' place: the right answer for every visit, dealt, stripped or in another tokenizer's ids."""

import json

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

from harness.config.checks import SettingsError
from harness.config.recipe import TrainingPhase
from harness.data.chat import end_of_turn_id, render
from harness.models.loading import rendering_hash
from harness.stages.answers import answered_rows, cut_answers, without_rationale
from harness.stages.labels import LABELS, make_labels, save_rows
from harness.stages.train import make_train
from tests.doubles import byte_ids, byte_tokenizer
from tests.stages.small_world import pair, prompts_alone, run
from tests.stages.test_labels import label_settings
from tests.stages.test_train import settings, steps_of

TOKENIZER = byte_tokenizer()
TEACHER = TrainingPhase(sequences="teacher")
SHUFFLED = TrainingPhase(sequences="teacher", control="shuffled")
ORDER = np.array([[0, 1], [2, 0]])


def subset(prompts=("ab", "c", "de")):
    """Rows 3, 5 and 8 of a mixture, rendered by the byte tokenizer."""
    rows = [render(TOKENIZER, pair(prompt, "gold"), 64) for prompt in prompts]
    columns = {"row": [3, 5, 8], "id": ["r3", "r5", "r8"]}
    columns |= {key: [getattr(row, key) for row in rows] for key in ("input_ids", "starts", "ends")}
    return Dataset.from_dict(columns)


def labels(folder, texts, rows, finished=True, rendering=None, sample=None):
    """A published label stage with these answers to `subset`'s prompts."""
    given = {row["row"]: row for row in subset()}
    columns = {name: [] for name in LABELS}
    for i, (number, text) in enumerate(zip(rows, texts, strict=True)):
        prompt = given[number]["input_ids"][: given[number]["starts"][0]]
        answer = byte_ids(text) + ([end_of_turn_id(TOKENIZER)] if finished else [])
        values = {
            "row": number,
            "id": given[number]["id"],
            "input_ids": prompt + answer,
            "starts": [len(prompt)],
            "ends": [len(prompt + answer)],
            "turn": 0,
            "sample": sample[i] if sample else 0,
            "text": text,
            "finished": finished,
        }
        for name in LABELS:
            columns[name].append(values[name])
    save_rows(columns, folder / "labels", LABELS)
    (folder / "labels.json").write_text(json.dumps({"rendering": rendering or rendering_hash(TOKENIZER)}))
    return folder


def texts_of(dataset, batches):
    """What each visit is trained to say."""
    end = end_of_turn_id(TOKENIZER)
    found = []
    for place in batches.ravel():
        row = dataset[int(place)]
        answer = row["input_ids"][row["starts"][0] :]
        found.append(TOKENIZER.decode([token for token in answer if token != end]))
    return found


def answered(stage, folders, order=ORDER, tokenizer=TOKENIZER, max_length=64):
    return answered_rows(stage, subset(), order, folders, tokenizer, max_length, seed=0)


def test_every_visit_gets_its_own_rows_answer_from_whichever_block_holds_it(tmp_path):
    folders = [labels(tmp_path / "a", ["eight", "three"], [8, 3]), labels(tmp_path / "b", ["five"], [5])]
    assert texts_of(*answered(TEACHER, folders)) == ["three", "five", "eight", "three"]


def test_a_row_without_an_answer_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="no teacher's answer"):
        answered(TEACHER, [labels(tmp_path / "a", ["three", "eight"], [3, 8])])


def test_visits_of_a_row_go_round_its_samples(tmp_path):
    folder = labels(tmp_path / "a", ["3a", "3b", "5a", "5b", "8a", "8b"], [3, 3, 5, 5, 8, 8], sample=[0, 1] * 3)
    stage = TrainingPhase(sequences="teacher", samples_per_prompt=2)
    order = np.array([[0, 0], [0, 1]])
    assert texts_of(*answered(stage, [folder], order)) == ["3a", "3b", "3a", "5a"]


def test_dealt_answers_are_the_same_answers_and_no_row_keeps_its_own(tmp_path):
    folder = labels(tmp_path / "a", ["three", "five", "eight"], [3, 5, 8])
    dataset, batches = answered(SHUFFLED, [folder])
    found = texts_of(dataset, batches)
    assert sorted(found[:3]) == ["eight", "five", "three"]
    assert all(mine != own for mine, own in zip(found, ["three", "five", "eight", "three"], strict=True))
    prompts = [row["input_ids"][: row["starts"][0]] for row in dataset]
    assert prompts == [row["input_ids"][: row["starts"][0]] for row in subset()]


def test_one_row_has_no_other_row_to_swap_answers_with(tmp_path):
    with pytest.raises(SettingsError, match="no other row"):
        answered(SHUFFLED, [labels(tmp_path / "a", ["x"], [3])], ORDER[:1, :1])


def test_reasoning_is_cut_off_before_training_and_kept_in_the_labels(tmp_path):
    folder = labels(tmp_path / "a", ["<think>hm\nhm</think>\n3", "5", "<think>never ends"], [3, 5, 8])
    strip = TrainingPhase(sequences="teacher", rationale="strip")
    assert texts_of(*answered(strip, [folder])) == ["3", "5", "", "3"]
    assert texts_of(*answered(TEACHER, [folder]))[0].startswith("<think>")
    assert without_rationale("a <think>b</think>") == "a <think>b</think>"  # only at the head


def test_a_teacher_that_renders_otherwise_teaches_by_its_words(tmp_path):
    alike = labels(tmp_path / "a", ["three", "fünf", "eight"], [3, 5, 8])
    other = labels(tmp_path / "b", ["three", "fünf", "eight"], [3, 5, 8], rendering="another tokenizer")
    one, batches = answered(TEACHER, [alike])
    two, again = answered(TEACHER, [other])
    for place, same in zip(batches.ravel(), again.ravel(), strict=True):
        for name in ("row", "input_ids", "starts", "ends"):
            assert one[int(place)][name] == two[int(same)][name]


def test_an_unfinished_answer_has_no_end_of_turn_target(tmp_path):
    for name, rendering in (("a", None), ("b", "another tokenizer")):
        folder = labels(tmp_path / name, ["x", "y", "z"], [3, 5, 8], finished=False, rendering=rendering)
        dataset, _ = answered(TEACHER, [folder])
        assert all(end_of_turn_id(TOKENIZER) not in row["input_ids"][row["starts"][0] :] for row in dataset)


def test_an_answer_in_other_ids_is_cut_to_the_longest_row(tmp_path):
    folder = labels(tmp_path / "a", ["x" * 40, "y", "z"], [3, 5, 8], rendering="another tokenizer")
    dataset, _ = answered(TEACHER, [folder], max_length=20)
    assert max(len(ids) for ids in dataset["input_ids"]) == 20


def test_many_cut_answers_are_told_once_over_all_blocks_and_only_those_that_are_visited(tmp_path):
    end = end_of_turn_id(TOKENIZER)
    done, cut = labels(tmp_path / "a", ["three"], [3]), labels(tmp_path / "b", ["x", "y"], [5, 8], finished=False)
    (said,) = cut_answers(*answered(TEACHER, [done, cut]), end)
    assert said.startswith("2 of 3 teacher's answers were cut")
    assert cut_answers(*answered(TEACHER, [done, cut], ORDER[:1, :1]), end) == []


def test_an_answer_cut_in_the_students_ids_counts_as_cut(tmp_path):
    folder = labels(tmp_path / "a", ["x" * 40, "y", "z"], [3, 5, 8], rendering="another tokenizer")
    (said,) = cut_answers(*answered(TEACHER, [folder], max_length=20), end_of_turn_id(TOKENIZER))
    assert said.startswith("1 of 3 ")


def test_a_divergence_deals_what_the_teacher_says_and_leaves_the_text_with_its_row(tmp_path):
    folder = labels(tmp_path / "a", ["three", "five", "eight"], [3, 5, 8])
    stage = TrainingPhase(sequences="teacher", divergence="forward_kl", control="shuffled")
    assert texts_of(*answered(stage, [folder])) == ["three", "five", "eight", "three"]


def test_a_divergence_on_the_teachers_answers_is_that_divergence_on_rows_that_hold_them(world, tmp_path):
    asked = label_settings(sampling_temperature=1.0)
    rows = prompts_alone(world, tmp_path)
    facts, made = run(make_labels, asked, {"rows": rows, "teacher": world["teacher"]}, tmp_path, "labels")
    assert facts["counts"]["answers"] == 12
    (tmp_path / "as_gold").mkdir()
    load_from_disk(made / "labels").select_columns(["row", "id", "input_ids", "starts", "ends"]).save_to_disk(
        tmp_path / "as_gold" / "train"
    )
    load_from_disk(rows / "validation").save_to_disk(tmp_path / "as_gold" / "validation", num_shards=1)
    found = {}
    for name, sequences, given in (
        ("on_labels", "teacher", {"subset": rows, "labels": made}),
        ("on_rows", "gold", {"subset": tmp_path / "as_gold"}),
    ):
        stage = TrainingPhase(sequences=sequences, divergence="forward_kl", sampling_temperature=1.0)
        inputs = {"start": world["start"], "teacher": world["teacher"]} | given
        told, out = run(make_train, settings(stage), inputs, tmp_path, name)
        found[name] = steps_of(out), told["cost"]["teacher_tokens"], told["cost"]["trained_tokens"]
    assert found["on_labels"] == found["on_rows"]
    assert min(found["on_labels"][0]) > 0


@pytest.mark.parametrize(
    "stage", [TrainingPhase(), TrainingPhase(sequences="student", student_share=0.5, divergence="jsd")]
)
def test_a_stage_that_reads_answers_raises_where_there_are_none(world, tmp_path, stage):
    inputs = {"subset": prompts_alone(world, tmp_path), "start": world["start"], "teacher": world["teacher"]}
    with pytest.raises(ValueError, match="reads the data's answers"):
        run(make_train, settings(stage, max_new_tokens=4), inputs, tmp_path, "a")


def test_labels_train_the_student_and_the_shuffled_control_trains_others(world, tmp_path):
    inputs = {"rows": world["subset"], "teacher": world["teacher"]}
    _, folder = run(make_labels, label_settings(), inputs, tmp_path, "labels")
    # the same labels as two blocks
    whole = load_from_disk(folder / "labels")
    blocks = {}
    for name, rows in (("0.1", range(5)), ("1", range(5, 12))):
        whole.select(rows).save_to_disk(tmp_path / name / "labels")
        (tmp_path / name / "labels.json").write_text((folder / "labels.json").read_text())
        blocks[f"labels:{name}"] = tmp_path / name
    assert len(concatenate_datasets([load_from_disk(path / "labels") for path in blocks.values()])) == 12
    start = {role: world[role] for role in ("subset", "start")}
    losses = {}
    for name, stage, given in (
        ("plain", TEACHER, {"labels": folder}),
        ("blocks", TEACHER, blocks),
        ("dealt", SHUFFLED, {"labels": folder}),
        ("gold", TrainingPhase(), {}),
    ):
        _, out = run(make_train, settings(stage), start | given, tmp_path, name)
        losses[name] = steps_of(out)
    assert losses["plain"] == losses["blocks"]
    assert len({losses[name][0] for name in ("plain", "dealt", "gold")}) == 3
