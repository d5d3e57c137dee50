"""Answers in the rows' place: the right answer for every visit, dealt, stripped or in another tokenizer's ids."""

import json

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

from harness.config.checks import SettingsError
from harness.config.recipe import TrainingPhase
from harness.data.chat import end_of_turn_id, prompt_ids, render, render_rows
from harness.data.sequences import TURN, draw_seed
from harness.models.loading import rendering_hash
from harness.stages.answers import answered_rows, cut_answers, without_rationale
from harness.stages.labels import LABELS, make_labels, save_rows
from harness.stages.train import make_train
from tests.doubles import byte_ids, byte_tokenizer
from tests.stages.small_world import pair, prompts_alone, run
from tests.stages.test_labels import label_settings
from tests.stages.test_train import settings, steps_of
from tests.thinking import chat, family_tokenizer

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


def test_a_row_without_an_answer_is_refused_with_how_many_there_are(tmp_path):
    with pytest.raises(SettingsError, match=r"1 of 3 rows .* no teacher's answer: .* raise corpus\.max_length"):
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


def family_subset(tokenizer, conversations, numbers=(3, 5)):
    """Conversations as a subset's rows by this tokenizer: one row each, or one a turn."""
    columns = {name: [] for name in ("row", "id", "input_ids", "starts", "ends")}
    for number, rows in zip(numbers, render_rows(tokenizer, conversations, 500), strict=True):
        for turn, one in enumerate(rows):
            id = f"r{number}" if len(rows) == 1 else f"r{number}/{turn}"
            values = (number + turn * TURN, id, one.input_ids, one.starts, one.ends)
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
    return Dataset.from_dict(columns)


def family_labels(folder, rows, texts, turns, rendering="another"):
    """A published label stage: to each row (number, id) a finished text, as its turn's answer."""
    columns = {name: [] for name in LABELS}
    for (number, id), text, turn in zip(rows, texts, turns, strict=True):
        values = (number, id, [1, 2], [1], [2], turn, 0, text, True)
        for name, value in zip(LABELS, values, strict=True):
            columns[name].append(value)
    save_rows(columns, folder / "labels", LABELS)
    (folder / "labels.json").write_text(json.dumps({"rendering": rendering}))
    return folder


@pytest.mark.parametrize(("rationale", "expected"), [("strip", "\n</think>\n\n42"), ("keep", "hm\n</think>\n\n42")])
def test_reasoning_that_the_prompt_begins_is_stripped_and_ended_as_in_a_gold_answer(tmp_path, rationale, expected):
    tokenizer = family_tokenizer("qwen3_5_think")
    rows = family_subset(tokenizer, [chat("q", "42"), chat("r", "42")])
    # as labels are made now, and as they were: without the mark that the prompt has
    texts = ["<think>\nhm\n</think>\n\n42", "hm\n</think>\n\n42"]
    folder = family_labels(tmp_path / "a", [(3, "r3"), (5, "r5")], texts, [0, 0])
    phase = TrainingPhase(sequences="teacher", rationale=rationale)
    dataset, _ = answered_rows(phase, rows, np.array([[0, 1]]), [folder], tokenizer, 500, seed=0)
    trained = [tokenizer.decode(one["input_ids"][one["starts"][0] : one["ends"][0]]) for one in dataset]
    assert trained == [expected + "<|im_end|>"] * 2
    if rationale == "strip":  # token by token the row of the same gold answer
        assert dataset["input_ids"] == rows["input_ids"] and dataset["starts"] == rows["starts"]


@pytest.mark.parametrize(
    ("student", "labelled", "turns"),
    [
        ("qwen3", [(3, "r3"), (5, "r5")], [1, 0]),  # a row a turn for the student, one answered turn of the teacher
        ("qwen3", [(3, "r3/0"), (3 + TURN, "r3/1"), (5, "r5")], [0, 0, 0]),  # a row a turn for both
        ("qwen2_5", [(3, "r3/0"), (3 + TURN, "r3/1"), (5, "r5")], [0, 0, 0]),  # a row a turn for the teacher
    ],
)
def test_an_answer_follows_the_prompt_of_its_own_turn_however_either_side_is_rendered(
    tmp_path, student, labelled, turns
):
    tokenizer = family_tokenizer(student)
    conversation = chat("q", "a", "r", "b")
    rows = family_subset(tokenizer, [conversation, chat("s", "c")])
    texts = [
        f"answer {number % TURN} {number // TURN + turn}" for (number, _), turn in zip(labelled, turns, strict=True)
    ]
    folder = family_labels(tmp_path / "a", labelled, texts, turns)
    order = np.arange(len(rows))[None]
    dataset, batches = answered_rows(TEACHER, rows, order, [folder], tokenizer, 500, seed=0)
    prompts = {
        text: prompt_ids(tokenizer, conversation[: 2 * int(text[-1]) + 1]) for text in texts if "answer 3" in text
    }
    prompts["answer 5 0"] = prompt_ids(tokenizer, chat("s"))
    found = []
    for place in batches.ravel():
        one = dataset[int(place)]
        found.append(tokenizer.decode(one["input_ids"][one["starts"][0] : one["ends"][0]]).removesuffix("<|im_end|>"))
        assert one["input_ids"][: one["starts"][0]] == prompts[found[-1]]
    if student == "qwen2_5":
        assert found == [f"answer 3 {draw_seed('turn', 'r3') % 2}", "answer 5 0"]
    else:
        assert found == [*(["answer 3 1"] * 2 if len(labelled) == 2 else ["answer 3 0", "answer 3 1"]), "answer 5 0"]
