import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.data.sequences import TURN, conversation_of
from harness.plan.data_stages import block_edges
from harness.results.contamination import row_numbers
from harness.stages.subset import MANY_SOURCES, SMALL_SOURCE, choose_rows, choose_validation, make_subset
from tests.doubles import CHAT_TEMPLATE, byte_ids, byte_tokenizer, special_id
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


@st.composite
def corpora(draw):
    """Sources as they come: a few large ones, and up to 300 of few rows."""
    sizes = draw(st.lists(st.integers(1, 400), min_size=0, max_size=4))
    sizes += draw(st.lists(st.integers(1, draw(st.sampled_from([1, 5, 120]))), min_size=1, max_size=300))
    return np.repeat(np.arange(len(sizes)), sizes), [f"source {i}" for i in range(len(sizes))]


@settings(max_examples=40, deadline=None)
@given(
    corpus=corpora(), data_seed=st.integers(0, 99), fractions=st.lists(st.floats(1e-12, 1.0), min_size=2, max_size=4)
)
def test_fractions_of_many_small_sources_nest_and_are_fractions(corpus, data_seed, fractions):
    codes, names = corpus
    count = np.bincount(codes)
    small = (count < SMALL_SOURCE) if (count < SMALL_SOURCE).sum() > MANY_SOURCES else np.zeros(len(names), bool)
    before: set[int] = set()
    for fraction in sorted([*fractions, 1.0]):
        rows, place = choose_rows(codes, names, fraction, data_seed)
        assert before <= set(rows) and len(rows)
        before = set(rows)
        taken = np.bincount(codes[rows], minlength=len(names))
        # the first places of each source's own order, so fractions nest per source too
        assert all(set(place[codes[rows] == code]) == set(range(taken[code])) for code in set(codes[rows]))
        assert [max(1, round(fraction * n)) for n in count[~small]] == taken[~small].tolist()
        if small.any():
            pool, spread = count[small].sum(), len(set(count[small]))
            assert abs(taken[small].sum() - fraction * pool) <= max(3.0, 1.5 * spread**0.5, 0.1 * fraction * pool)
    assert before == set(range(len(codes)))


def test_one_per_cent_of_two_hundred_sources_of_one_row_is_one_per_cent(tmp_path, tokenizer):
    rows = [row(f"p{i}", "a", "big") for i in range(200)] + [row(f"q{i}", "a", f"url {i}") for i in range(200)]
    made, _ = mixture(tmp_path, rows)
    for fraction, most in ((0.01, 5), (0.1, 41), (1.0, 395)):
        facts = subset(tmp_path / f"{fraction}", made, tokenizer, data_frac=fraction)
        written = json.loads((tmp_path / f"{fraction}" / "subset.json").read_text())
        taken = written["n_train"] + written["n_validation"]
        assert abs(taken - fraction * 395) <= 1 and taken <= most
        assert facts["realised_frac"] == written["realised_frac"] == taken / 395
        assert any("of the rows here" in said for said in facts["warnings"]) == (abs(taken / 395 / fraction - 1) > 0.1)


def test_a_share_that_is_off_by_more_than_a_tenth_is_said(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row(f"p{i}", "a", f"s{i % 5}") for i in range(500)])
    facts = subset(tmp_path / "none", made, tokenizer, data_frac=1e-12)
    assert facts["realised_frac"] == 5 / 490
    assert any(said.startswith("data_frac=1e-12 is 0.0102 of the rows here") for said in facts["warnings"])
    facts = subset(tmp_path / "half", made, tokenizer, data_frac=0.5)
    assert not any("of the rows here" in said for said in facts["warnings"])


def with_system(i):
    messages = row(f"p{i}", "a")["messages"]
    return {"id": f"s{i}", "messages": [{"role": "system", "content": "s"}, *messages]}


def test_rows_that_the_template_rejects_are_refused_by_name_or_dropped_and_counted(tmp_path):
    template = CHAT_TEMPLATE.replace(
        "{{ '<|'", "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ '<|'", 1
    )
    byte_tokenizer(template).save_pretrained(tmp_path / "tokenizer")
    made, _ = mixture(tmp_path, [row(f"q{i}", "a") for i in range(60)] + [with_system(i) for i in range(20)])
    with pytest.raises(SettingsError, match=r"^row 's\d+' of the corpus cannot be used: .*no system.*on_bad_row=drop"):
        subset(tmp_path / "refused", made, tmp_path / "tokenizer")
    facts = subset(tmp_path / "dropped", made, tmp_path / "tokenizer", where={"on_bad_row": "drop"})
    (held,) = [pq.read_table(made / "heldout.parquet")["id"].to_pylist()]
    in_train = 20 - sum(one.startswith("s") for one in held)
    assert f"rows left out: {in_train}, the chat template rejects it" in facts["warnings"]
    assert facts["counts"]["n_train"] + facts["counts"]["n_validation"] == 70 - in_train


def test_control_tokens_in_texts_are_counted_or_refused(tmp_path, tokenizer):
    made, _ = mixture(tmp_path, [row(f"<|end|> {i}", "a <|end|>" if i % 2 else "a") for i in range(40)])
    facts = subset(tmp_path / "text", made, tokenizer, validation=0.0)
    written = json.loads((tmp_path / "text" / "subset.json").read_text())
    assert written["control_tokens"] == {"<|end|>": facts["counts"]["control_tokens"]} and 30 < 36 + 10 < 60
    assert any("control tokens in the text of 32 rows" in said for said in facts["warnings"])
    for one in load_from_disk(tmp_path / "text" / "train"):
        assert one["input_ids"].count(special_id("<|end|>")) == 1
    with pytest.raises(SettingsError, match=r"control token of the tokenizer or template \(<\|end\|>\)"):
        subset(tmp_path / "refused", made, tokenizer, control_tokens="refuse")


def test_a_template_that_leaves_system_turns_out_is_warned_of(tmp_path):
    byte_tokenizer(
        "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}<|end|>{% endfor %}"
    ).save_pretrained(tmp_path / "tokenizer")
    made, _ = mixture(tmp_path, [with_system(i) for i in range(50)])
    facts = subset(tmp_path / "rows", made, tmp_path / "tokenizer")
    assert any(said.startswith("system turns are not rendered") for said in facts["warnings"])


def test_a_prompt_that_another_mixture_knows_by_its_whole_is_excluded_too(tmp_path, tokenizer):
    rows = [{**with_system(0), "id": f"d{i}"} for i in range(60)]
    for i, one in enumerate(rows):
        one["messages"] = [{"role": "system", "content": f"document {i}"}, *one["messages"][1:]]
    scored, _ = mixture(tmp_path / "scored", rows)
    held = pq.read_table(scored / "heldout.parquet")["id"].to_pylist()
    # few of the documents, so the other mixture knows its rows by their first turns
    other, _ = mixture(tmp_path / "other", [row(f"x{i}", "a") for i in range(60)] + rows[:10])
    facts = subset(tmp_path / "out", other, tokenizer, exclude=scored)
    train = pq.read_table(other / "train.parquet")["id"].to_pylist()
    assert facts["counts"]["dropped_rows"] == len(set(held) & set(train)) > 0
