import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.data.sequences import TURN, conversation_of
from harness.plan.data_stages import block_edges
from harness.results.contamination import row_numbers
from harness.stages.subset import choose_rows, choose_validation, make_subset
from tests.doubles import byte_ids, byte_tokenizer, special_id
from tests.stages.test_mixture import mixture, row
from tests.thinking import chat, family_tokenizer

FRACTIONS = (0.001, 0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.333, 0.5, 0.75, 0.999, 1.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


def subset(out: Path, made: Path, tokenizer: Path, exclude: Path | None = None, **settings):
    out.mkdir(parents=True)
    inputs = {"mixture": made, "tokenizer": tokenizer} | ({"exclude": exclude} if exclude else {})
    asked = {"data_frac": 1.0, "data_seed": 0, "max_length": 64, "validation": 0.1, **settings}
    return make_subset(asked, inputs, out, Machine())


def split(codes, names, prompts, data_frac, data_seed, share=0.1):
    chosen, order = choose_rows(codes, names, data_frac, data_seed)
    carved = choose_validation(codes[chosen], names, prompts[chosen], order, share, data_seed)
    return chosen[~carved], chosen[carved]


def random_corpus(rng):
    names = [f"source {i}" for i in range(int(rng.integers(1, 6)))]
    codes = np.sort(rng.integers(0, len(names), int(rng.integers(1, 400))))
    names = [names[code] for code in np.unique(codes)]
    codes = np.unique(codes, return_inverse=True)[1]
    return codes, names, rng.integers(0, rng.choice([10, 10_000]), len(codes)).astype(np.uint64)


def test_a_larger_fraction_contains_every_row_of_a_smaller_one_per_source():
    rng = np.random.default_rng(1)
    for seed in range(40):
        codes, names, _ = random_corpus(rng)
        rows_of = np.bincount(codes)
        smaller: set[int] = set()
        for fraction in FRACTIONS:
            chosen, _ = choose_rows(codes, names, fraction, seed)
            taken = np.bincount(codes[chosen], minlength=len(names))
            assert taken.tolist() == [max(1, round(fraction * rows)) for rows in rows_of]
            assert len(set(chosen)) == len(chosen) and smaller <= set(chosen)
            smaller = set(chosen)
        assert smaller == set(range(len(codes)))


def test_a_larger_fraction_trains_on_every_row_that_a_smaller_one_trains_on():
    rng = np.random.default_rng(2)
    for seed in range(40):
        codes, names, _ = random_corpus(rng)
        prompts = np.arange(len(codes), dtype=np.uint64) // 2
        smaller: set[int] = set()
        for fraction in FRACTIONS:
            train, held = split(codes, names, prompts, fraction, seed)
            forced = len(held) == 1  # a cell of few rows that had none of its own
            assert smaller <= set(train) | (set(held) if forced else set())
            smaller = smaller if forced else set(train)


def test_a_prompt_is_never_in_train_and_validation_and_every_source_keeps_a_train_row():
    rng = np.random.default_rng(3)
    for seed in range(100):
        codes, names, prompts = random_corpus(rng)
        for share in (0.0, 0.1, 0.5):
            train, held = split(codes, names, prompts, 1.0, seed, share)
            assert not set(prompts[train]) & set(prompts[held])
            assert set(codes[train]) == set(codes)
            assert share or not len(held)


def test_validation_is_a_tenth_of_the_rows_and_at_least_one_of_ten():
    alone = np.arange(16_000, dtype=np.uint64)
    _, held = split(np.zeros(16_000, dtype=int), ["one"], alone, 1.0, 0)
    assert len(held) == 1600
    for seed in range(50):
        twelve = np.repeat(np.arange(12), 13)  # 156 rows: 15.6 expected, each source gives 1 or 2
        assert 12 <= len(split(twelve, [str(i) for i in range(12)], alone[:156], 1.0, seed)[1]) <= 24
        singles = np.arange(12)  # twelve sources of one row each cannot give any
        assert len(split(singles, [str(i) for i in range(12)], alone[:12], 1.0, seed)[1]) == 0
        assert len(split(np.repeat([0, 1], 5), ["a", "b"], alone[:10], 1.0, seed)[1]) >= 1
        assert len(split(np.zeros(4, dtype=int), ["a"], alone[:4], 1.0, seed)[1]) <= 1


def test_another_seed_and_another_source_name_give_another_order():
    codes = np.zeros(1000, dtype=int)
    one = choose_rows(codes, ["a"], 0.1, 0)[0]
    assert set(one) == set(choose_rows(codes, ["a"], 0.1, 0)[0])
    assert set(one) != set(choose_rows(codes, ["a"], 0.1, 1)[0])
    assert set(one) != set(choose_rows(codes, ["b"], 0.1, 0)[0])


def test_rows_are_rendered_with_their_spans_and_can_be_traced_back(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row(f"p{i}", f"a{i}") for i in range(50)])
    facts = subset(tmp_path / "subset", made, tokenizer)
    source = pq.read_table(made / "train.parquet").to_pylist()
    train, held = (load_from_disk(tmp_path / "subset" / name) for name in ("train", "validation"))
    assert sorted([*train["row"], *held["row"]]) == list(range(40))
    assert (len(train), len(held)) == (36, 4) == (facts["counts"]["n_train"], facts["counts"]["n_validation"])
    for one in [*train, *held]:
        messages = source[one["row"]]["messages"]
        assert one["id"] == source[one["row"]]["id"]
        prompt = [special_id("<|user|>"), *byte_ids(messages[0]["content"]), special_id("<|assistant|>")]
        answer = [*byte_ids(messages[1]["content"]), special_id("<|end|>")]
        assert one["input_ids"] == prompt + answer
        assert (one["starts"], one["ends"]) == ([len(prompt)], [len(prompt + answer)])
    assert train.cache_files  # memory-mapped, not held
    written = json.loads((tmp_path / "subset" / "subset.json").read_text())
    assert written["response_tokens"] == sum(one["ends"][0] - one["starts"][0] for one in train)
    left = sorted(path.name for path in (tmp_path / "subset").iterdir())
    assert left == ["subset.json", "train", "validation"]


def test_the_same_inputs_give_the_same_rows(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row(f"p{i}", f"a{i}") for i in range(100)])
    for name in ("one", "other"):
        subset(tmp_path / name, made, tokenizer, data_frac=0.3)
    for part in ("train", "validation"):
        one, other = (load_from_disk(tmp_path / name / part) for name in ("one", "other"))
        assert one.to_list() == other.to_list()
    one, other = ((tmp_path / name / "subset.json").read_text() for name in ("one", "other"))
    assert one == other


def test_rows_without_a_response_token_are_dropped_and_cut_rows_are_counted(tmp_path, tokenizer):
    rows = [row(f"{i:02}" + "x" * (98 if i < 5 else 0), "a" * (100 if i >= 45 else 1)) for i in range(50)]
    made, _ = mixture(tmp_path, rows, {"heldout_rows": 1})
    messages = pq.read_table(made / "train.parquet")["messages"].to_pylist()
    left = [turns[0]["content"] for turns in messages]
    long_prompts, long_answers = sum(len(p) == 100 for p in left), sum(int(p[:2]) >= 45 for p in left)
    facts = subset(tmp_path / "subset", made, tokenizer)
    written = json.loads((tmp_path / "subset" / "subset.json").read_text())
    assert written["dropped"] == {"no assistant token within max_length": long_prompts}
    assert facts["counts"]["truncated_rows"] == long_answers
    assert facts["counts"]["n_train"] + facts["counts"]["n_validation"] == 49 - long_prompts
    with pytest.raises(SettingsError, match="no row is left to train on"):
        subset(tmp_path / "none", made, tokenizer, max_length=2)


def test_prompts_that_another_mixture_holds_out_are_excluded_and_counted(tmp_path, tokenizer):
    cell, _ = mixture(tmp_path / "cell", [row(f"p{i}", "human") for i in range(100)], {"heldout_rows": 20})
    rows = [row(f" P{i} ", "clean") for i in range(150)]
    teacher, _ = mixture(tmp_path / "teacher", rows, {"heldout_rows": 1})
    held = set(pq.read_table(cell / "heldout.parquet")["prompt_hash"].to_pylist())
    prompts = pq.read_table(teacher / "train.parquet")["prompt_hash"].to_pylist()
    facts = subset(tmp_path / "subset", teacher, tokenizer, exclude=cell)
    parts = [load_from_disk(tmp_path / "subset" / name)["row"] for name in ("train", "validation")]
    used = {prompts[number] for part in parts for number in part}
    assert len(held) == 20 and not used & held
    assert facts["counts"]["dropped_rows"] == len(held & set(prompts)) >= 19


def test_blocks_tile_a_fraction_and_do_not_know_which_one(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row(f"p{i}", f"a{i}") for i in range(150)])
    found = []
    for start, end in block_edges(0.6):
        folder = tmp_path / f"block-{end:g}"
        subset(folder, made, tokenizer, block=[start, end], data_frac=end, validation=0.0)
        found += load_from_disk(folder / "train")["row"]
    subset(tmp_path / "whole", made, tokenizer, data_frac=0.6)
    whole = [n for name in ("train", "validation") for n in load_from_disk(tmp_path / "whole" / name)["row"]]
    assert len(found) == len(set(found)) and sorted(found) == sorted(whole)


def test_prompts_alone_are_rendered_without_a_token_of_their_answers(tmp_path, tokenizer):
    facts, found = {}, {}
    for answer in ("a", "another answer"):
        rows = [row(f"p{i}", answer, id=f"p{i}") for i in range(40)]
        twice = [row(f"d{i}", answer, id=f"d{i}") for i in range(10)]
        rows += [{**one, "messages": one["messages"] * 2} for one in twice]
        made, _ = mixture(tmp_path / answer, rows)
        facts[answer] = subset(tmp_path / answer / "subset", made, tokenizer, answers="none", validation=0.0)
        found[answer] = load_from_disk(tmp_path / answer / "subset" / "train").to_list()
    assert found["a"] == found["another answer"]  # no answer reaches the artifact
    source = pq.read_table(made / "train.parquet")["messages"].to_pylist()
    assert [one["row"] for one in found["a"]] == list(range(len(source)))  # nothing is set apart for validation
    for one in found["a"]:
        prompt = [special_id("<|user|>"), *byte_ids(source[one["row"]][0]["content"]), special_id("<|assistant|>")]
        assert (one["input_ids"], one["starts"], one["ends"]) == (prompt, [len(prompt)], [len(prompt)])
    assert facts["a"]["counts"]["n_validation"] == facts["a"]["counts"]["response_tokens"] == 0
    assert any("answers=none leaves no answer to score" in said for said in facts["a"]["warnings"])


def test_a_prompt_alone_that_leaves_no_room_for_an_answer_is_dropped_as_it_would_be_with_one(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row("x" * (i + 1), "a") for i in range(40)], {"heldout_rows": 1})
    kept = []
    for name, asked in (("given", {}), ("none", {"answers": "none"})):
        subset(tmp_path / name, made, tokenizer, validation=0.0, max_length=20, **asked)
        kept.append(load_from_disk(tmp_path / name / "train")["row"])
    assert kept[0] == kept[1] and 10 < len(kept[0]) < 20


def test_a_cell_without_validation_rows_is_readable(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row(f"p{i}", f"a{i}") for i in range(6)])
    subset(tmp_path / "subset", made, tokenizer, validation=0.0)
    assert len(load_from_disk(tmp_path / "subset" / "validation")) == 0


def test_conversations_whose_turns_are_rewritten_become_one_row_a_turn_and_are_counted(tmp_path):
    family_tokenizer("qwen3").save_pretrained(tmp_path / "tokenizer")
    rows = [{**row(f"p{i}", "a"), "id": f"r{i}"} for i in range(60)]
    for one in rows[::2]:
        one["messages"] = chat(one["messages"][0]["content"], "a", "r", "b", "s", "c")
    made, _ = mixture(tmp_path, rows)
    facts = subset(tmp_path / "subset", made, tmp_path / "tokenizer", max_length=500)
    ids = pq.read_table(made / "train.parquet")["id"].to_pylist()
    long = {number for number, id in enumerate(ids) if int(id[1:]) % 2 == 0}
    parts = {name: load_from_disk(tmp_path / "subset" / name) for name in ("train", "validation")}
    sides = {name: {conversation_of(number) for number in part["row"]} for name, part in parts.items()}
    assert sides["train"].isdisjoint(sides["validation"]) and sides["train"] | sides["validation"] == set(range(50))
    for part in parts.values():
        for one in part:
            number, turn = conversation_of(one["row"]), one["row"] // TURN
            assert one["id"] == (f"{ids[number]}/{turn}" if number in long else ids[number]) and len(one["starts"]) == 1
        of_one = [
            turn for turn in range(3) for one in sides["train"] & long if one + turn * TURN in parts["train"]["row"]
        ]
        assert len(of_one) == 3 * len(sides["train"] & long)
    counts = facts["counts"]
    assert (counts["turnwise_conversations"], counts["turnwise_rows"]) == (len(long), 3 * len(long))
    assert counts["n_train"] + counts["n_validation"] == 50 + 2 * len(long)
    described = json.loads((tmp_path / "subset" / "subset.json").read_text())
    assert described["sources"]["one"]["train"] == counts["n_train"] and described["turnwise_rows"] == 3 * len(long)
    # the same conversations are chosen as by a template that rewrites nothing
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    plain = subset(tmp_path / "plain", made, tmp_path / "bytes", max_length=500)
    assert set(load_from_disk(tmp_path / "plain" / "train")["row"]) == sides["train"]
    assert "turnwise_rows" not in plain["counts"]
    assert set(row_numbers(tmp_path / "subset" / "train").tolist()) == sides["train"]
