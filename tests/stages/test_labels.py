"""Labels: the teacher's own answers to a set of rows, each a matter of the row and the teacher alone."""

import json

import numpy as np
import pytest
from datasets import load_from_disk

from harness.data.chat import render
from harness.data.sequences import draw_seed, visits
from harness.models.generate import generate
from harness.models.loading import load_model, load_tokenizer, save_model, tokenizer_hash
from harness.stages.labels import make_labels, save_rows
from tests.doubles import byte_tokenizer, tiny_llama
from tests.stages.small_world import files, run, stopped
from tests.thinking import chat, family_tokenizer

TOKENIZER = byte_tokenizer()
BUDGET = {"kind": "steps", "amount": 10, "batch_size": 4, "learning_rate": 1e-3}


def label_settings(**changes):
    return {
        "sampling_temperature": 0.0,
        "samples_per_prompt": 1,
        "max_new_tokens": 5,
        "max_length": 64,
        "precision": "fp32",
    } | changes


def label(world, tmp_path, name="labels", **changes):
    inputs = {"rows": world["subset"], "teacher": world["teacher"]}
    facts, folder = run(make_labels, label_settings(**changes), inputs, tmp_path, name)
    return facts, load_from_disk(folder / "labels")


def test_labels_are_the_teachers_own_greedy_answers_to_every_row(world, tmp_path):
    facts, labels = label(world, tmp_path)
    subset, model = load_from_disk(world["subset"] / "train"), load_model(world["teacher"])
    assert labels["row"] == subset["row"]
    for one, gold in zip(labels, subset, strict=True):
        prompt = gold["input_ids"][: gold["starts"][-1]]
        assert one["input_ids"][: one["starts"][0]] == prompt and one["id"] == gold["id"]
        assert one["input_ids"][one["starts"][0] :] == generate(model, TOKENIZER, [prompt], 5)[0]
        answer = one["input_ids"][one["starts"][0] :]
        assert one["finished"] == (answer[-1] == TOKENIZER.eos_token_id)
        assert one["text"] == load_tokenizer(world["teacher"]).decode(answer[:-1] if one["finished"] else answer)
    assert facts["counts"]["truncated_answers"] == sum(not done for done in labels["finished"])
    written = sum(e[0] - s[0] for s, e in zip(labels["starts"], labels["ends"], strict=True))
    assert facts["cost"]["generated_tokens"] == written


def test_labels_of_what_is_visited_answer_only_the_rows_a_span_of_the_budget_visits(world, tmp_path):
    _, labels = label(world, tmp_path, visits={"budget": BUDGET, "span": [0.0, 0.1], "seed": 0})
    assert labels["row"] == sorted(set(visits(12, 10, 4, seed=0)[:1].ravel().tolist()))


def test_sampled_labels_depend_on_a_rows_id_and_not_on_what_else_is_answered(world, tmp_path):
    found = []
    for name, extra in (("all", {}), ("some", {"visits": {"budget": BUDGET, "span": [0.0, 0.1], "seed": 0}})):
        _, labels = label(world, tmp_path, name, sampling_temperature=1.0, **extra)
        found.append(dict(zip(labels["id"], labels["input_ids"], strict=True)))
    assert len(found[1]) < len(found[0]) and all(found[0][id] == ids for id, ids in found[1].items())


def test_every_row_gets_as_many_different_samples_as_asked(world, tmp_path):
    _, labels = label(world, tmp_path, samples_per_prompt=3, sampling_temperature=1.0)
    assert labels["row"][:3] == [0, 0, 0] and labels["sample"][:3] == [0, 1, 2]
    texts = labels["text"]
    assert sum(len(set(texts[i : i + 3])) > 1 for i in range(0, 36, 3)) > 8


def test_the_turn_that_is_answered_is_drawn_by_the_rows_id(world, tmp_path):
    _, labels = label(world, tmp_path)
    assert labels["turn"] == [draw_seed("turn", id) % 1 for id in labels["id"]]


def test_prompts_alone_get_the_answers_that_their_answered_rows_get(world, tmp_path):
    from tests.stages.small_world import prompts_alone

    asked = {"sampling_temperature": 1.0, "samples_per_prompt": 2}
    facts, labels_of_prompts = label(world | {"subset": prompts_alone(world, tmp_path)}, tmp_path, "prompts", **asked)
    _, labels = label(world, tmp_path, "rows", **asked)
    assert labels_of_prompts.to_list() == labels.to_list()
    assert facts["warnings"] == [] and facts["counts"]["truncated_answers"] > 0  # told once, where it is trained


def test_a_block_without_rows_is_answered_without_loading_the_teacher(world, tmp_path, monkeypatch):
    import harness.stages.labels as teach

    empty = tmp_path / "empty"
    load_from_disk(world["subset"] / "train").select(np.arange(0)).save_to_disk(empty / "train", num_shards=1)
    monkeypatch.setattr(teach, "open_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))
    facts, labels = label(world | {"subset": empty}, tmp_path)
    assert len(labels) == 0 and facts["counts"]["rows"] == 0 and facts["cost"]["flops"] == 0


@pytest.mark.parametrize("after", [(1,), (2, 1), (5,)])
def test_stopped_after_some_shards_and_begun_again_it_ends_with_the_same_files(world, tmp_path, monkeypatch, after):
    import harness.stages.labels as teach

    monkeypatch.setattr(teach, "ROWS_PER_PART", 5)
    twice = {"samples_per_prompt": 2, "sampling_temperature": 1.0}
    facts, _ = label(world, tmp_path, "straight", **twice)
    again, _ = stopped(monkeypatch, tmp_path / "kept", after, lambda name: label(world, tmp_path, name, **twice))
    assert files(tmp_path / "last") == files(tmp_path / "straight")
    assert again.pop("earlier_seconds") > 0 and again == facts, "what earlier attempts spent is counted"
    assert not list((tmp_path / "attempt-0").iterdir())


def test_the_text_of_an_answer_has_the_mark_with_which_the_prompt_began_its_reasoning(tmp_path, monkeypatch):
    tokenizer = family_tokenizer("qwen3_5_think")
    save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "teacher")
    row = render(tokenizer, chat("q", "42"), 500)
    columns = {"row": [0], "id": ["r0"], "input_ids": [row.input_ids], "starts": [row.starts], "ends": [row.ends]}
    save_rows(columns, tmp_path / "rows" / "train")
    (tmp_path / "rows" / "subset.json").write_text(json.dumps({"tokenizer_hash": tokenizer_hash(tokenizer)}))
    answer = tokenizer.encode("hm\n</think>\n\n42<|im_end|>")
    monkeypatch.setattr("harness.teachers.teacher.generate", lambda model, tok, prompts, *_, **__: [answer])
    inputs = {"rows": tmp_path / "rows", "teacher": tmp_path / "teacher"}
    settings = label_settings(max_length=500)
    _, folder = run(make_labels, settings, inputs, tmp_path, "labels")
    (label,) = load_from_disk(folder / "labels")
    assert label["text"] == "<think>\nhm\n</think>\n\n42"
    assert label["input_ids"] == row.input_ids[: row.starts[0]] + answer
