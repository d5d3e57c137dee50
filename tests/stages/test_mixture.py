import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.stages.mixture import _Seen, choose_heldout, make_mixture

DATA = Path(os.environ.get("HARNESS_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def row(prompt, answer, source="one", id=None):
    return {
        "id": id or f"{source} {prompt} {answer}",
        "source": source,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
    }


def mixture(folder: Path, rows, corpus=()):
    """Write rows to a file and make their mixture; returns its folder and the facts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    out = folder / "mixture"
    out.mkdir()
    asked = {"kind": "jsonl", "path": str(path), "heldout_rows": 10, **dict(corpus)}
    return out, make_mixture({"corpus": asked, "world_seed": 0}, {}, out, Machine())


def columns(path, *names):
    table = pq.read_table(path)
    return [table[name].to_pylist() for name in names]


def test_every_row_is_on_one_side_and_what_is_written_is_described(tmp_path):
    rows = [row(f"p{i}", "a", "big") for i in range(80)] + [row(f"q{i}", "a", "small") for i in range(20)]
    out, facts = mixture(tmp_path, rows)
    assert sorted(path.name for path in out.iterdir()) == ["heldout.parquet", "mixture.json", "train.parquet"]
    (train,), (held,) = columns(out / "train.parquet", "id"), columns(out / "heldout.parquet", "id")
    assert sorted(train + held) == sorted(one["id"] for one in rows)
    assert [one["id"] for one in rows if one["id"] in set(train)] == train  # the corpus's order
    written = json.loads((out / "mixture.json").read_text())
    # 10 of 100 rows: 8 of the 80, 2 of the 20
    assert written["sources"] == {
        "big": {"train": 72, "heldout": 8, "prompts": 80, "repeats": 0, "license": None},
        "small": {"train": 18, "heldout": 2, "prompts": 20, "repeats": 0, "license": None},
    }
    assert facts["counts"] == {"train_rows": 90, "heldout_rows": 10, "dropped_rows": 0, "repeats": 0}
    for name, sha256 in written["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    assert str(tmp_path) not in (out / "mixture.json").read_text()
    names = ["id", "messages", "source", "prompt_hash", "row_hash"]
    assert pq.read_schema(out / "train.parquet").names == names
    assert pq.read_schema(out / "heldout.parquet").names == [*names, "truth"]


def test_the_truth_reaches_the_heldout_rows_only(tmp_path):
    rows = [{**row(f"p{i}", "a"), "answer": f"t{i}"} for i in range(20)]
    out, _ = mixture(tmp_path, rows, {"truth_column": "answer"})
    held, truth = columns(out / "heldout.parquet", "messages", "truth")
    assert [messages[0]["content"][1:] for messages in held] == [text[1:] for text in truth]
    assert len(truth) == 4  # at most a fifth of a source, not the 10 asked for


def test_neither_a_repeated_row_nor_a_repeated_prompt_is_on_both_sides(tmp_path):
    rows = [row(f"Say {i % 24}.", f"{i % 24}", "hard coded") for i in range(240)]
    rows += [row(f" say  {i % 24}.", f"{i}", "other") for i in range(200)]
    rows += [row(f"branch {i % 50}", f"{i}", "tree") for i in range(300)]
    out, facts = mixture(tmp_path, rows, {"heldout_rows": 60})
    train, train_rows = columns(out / "train.parquet", "prompt_hash", "row_hash")
    held, held_rows = columns(out / "heldout.parquet", "prompt_hash", "row_hash")
    assert held and not set(train) & set(held) and not set(train_rows) & set(held_rows)
    assert facts["counts"]["repeats"] == 240 - 24
    table = json.loads((out / "mixture.json").read_text())["sources"]
    assert table["hard coded"]["repeats"] == 216 and table["hard coded"]["prompts"] == 24
    assert all(source["heldout"] and source["train"] for source in table.values())


def test_a_source_whose_prompts_are_larger_than_its_share_holds_out_its_smallest():
    prompts = np.array([5] * 10 + [7] * 4 + [9] * 10 + list(range(1000, 10_976)), dtype=np.uint64)
    sources = np.array([0] * 24 + [1] * 9976)
    held = choose_heldout(prompts, sources, 100)  # the share of source 0 is 0.24 rows
    assert set(prompts[held & (sources == 0)]) == {7}
    assert (held & (sources == 1)).sum() == 100  # rint(100 x 9976 / 10000): the smallest hashes
    assert set(prompts[held & (sources == 1)]) == set(range(1000, 1100))


def test_every_source_keeps_a_prompt_to_train_on_and_a_single_prompt_is_never_held_out():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 60))
        prompts = rng.integers(0, rng.integers(1, 12), count).astype(np.uint64)
        sources = np.unique(rng.integers(0, 4, count), return_inverse=True)[1]
        held = choose_heldout(prompts, sources, int(rng.integers(1, 100)))
        assert not set(prompts[held]) & set(prompts[~held])
        for source in range(sources.max() + 1):
            assert (~held & (sources == source)).any()


def test_the_heldout_rows_are_few_where_the_source_is_small_and_the_report_says_so(tmp_path):
    _, facts = mixture(tmp_path, [row(f"p{i}", "a") for i in range(20)], {"heldout_rows": 1000})
    assert facts["counts"]["heldout_rows"] == 4
    assert any("few held-out rows: 4 in place of 1000," in said for said in facts["warnings"])


def alone(prompt, source="one"):
    return {"id": f"{source} {prompt}", "source": source, "messages": row(prompt, "a")["messages"][:1]}


def test_only_answered_rows_are_held_out_and_their_prompts_are_not_trained_on(tmp_path):
    rows = [alone(f"p{i}") for i in range(80)] + [row(f"p{i}", "a") for i in range(8)]
    rows += [row(f"q{i}", "a", "tests") for i in range(12)] + [alone("w", "web"), alone("v", "web")]
    out, facts = mixture(tmp_path, rows, {"answers": "none", "heldout_rows": 15})
    (held,) = columns(out / "heldout.parquet", "messages")
    (train,) = columns(out / "train.parquet", "messages")
    assert all(messages[-1]["role"] == "assistant" for messages in held)
    assert not {messages[0]["content"] for messages in held} & {messages[0]["content"] for messages in train}
    written = json.loads((out / "mixture.json").read_text())
    # 15 of 20 answered rows, 6 and 9 of the sources' 8 and 12; the 6 prompts are in the other rows too
    assert [written["sources"][name]["heldout"] for name in ("one", "tests", "web")] == [6, 9, 0]
    assert written["dropped"] == {"train row whose prompt is held out": 6}
    assert facts["counts"]["unanswered_rows"] == 80 - 6 + 2
    assert any("sources without held-out rows: web;" in said for said in facts["warnings"])


def test_where_all_rows_are_answered_the_same_ones_are_held_out_whether_answers_are_trained_or_not(tmp_path):
    rows = [row(f"p{i}", "a", f"source {i % 3}") for i in range(60)]
    one, _ = mixture(tmp_path / "one", rows)
    other, facts = mixture(tmp_path / "other", rows, {"answers": "none"})
    for name in ("train.parquet", "heldout.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert "unanswered_rows" not in facts["counts"]


def test_a_corpus_without_an_answer_has_nothing_to_be_scored_on_and_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="nothing to score a model on; add some rows with an answer"):
        mixture(tmp_path, [alone(f"p{i}") for i in range(20)], {"answers": "none"})


def test_the_order_of_the_rows_does_not_change_which_are_held_out(tmp_path):
    rows = [row(f"p{i}", "a") for i in range(100)]
    one, _ = mixture(tmp_path / "one", rows)
    other, _ = mixture(tmp_path / "other", list(reversed(rows)))
    assert set(columns(one / "heldout.parquet", "id")[0]) == set(columns(other / "heldout.parquet", "id")[0])


def test_dropped_rows_are_counted_by_reason(tmp_path):
    rows = [row(f"p{i}", "a") for i in range(20)] + [row("p", " "), row("q", ""), {"id": "x", "messages": []}]
    out, facts = mixture(tmp_path, rows, {"on_bad_row": "drop"})
    assert json.loads((out / "mixture.json").read_text())["dropped"] == {"empty content": 2, "no messages": 1}
    assert facts["counts"]["dropped_rows"] == 3
    assert "rows left out: 2, empty content" in facts["warnings"]


def test_a_corpus_without_rows_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"no row is left to train on \(dropped: \{'empty content': 1"):
        mixture(tmp_path, [row("p", "")], {"on_bad_row": "drop"})


def test_a_file_that_changed_after_planning_is_refused(tmp_path):
    from harness.data.corpora.jsonl import Corpus

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("p", "a")) + "\n")
    corpus = {"kind": "jsonl", "path": str(path)}
    planned = Corpus(path=str(path)).identity(0)
    path.write_text(json.dumps(row("p", "b")) + "\n")
    with pytest.raises(SettingsError, match="no longer have the sha256"):
        settings = {"corpus": planned, "where": {"corpus": corpus, "world_seed": 0}}
        make_mixture(settings, {}, tmp_path, Machine())


def test_a_corpus_that_sets_its_split_is_obeyed_and_leaking_train_rows_are_dropped(tmp_path, monkeypatch):
    from harness.data.corpora import Example
    from harness.data.corpora.jsonl import Corpus

    def examples(self, world_seed):
        self.dropped, self.read_from = {}, []
        for id, prompt, split in (("a", "x", "train"), ("b", "Y", "train"), ("c", "y", "heldout")):
            yield Example(id, row(prompt, id)["messages"], "one", split, truth=id)

    monkeypatch.setattr(Corpus, "examples", examples)
    out, facts = mixture(tmp_path, [row("p", "a")])
    assert columns(out / "train.parquet", "id") == [["a"]]
    assert columns(out / "heldout.parquet", "id", "truth") == [["c"], ["c"]]
    assert "rows left out: 1, train row whose prompt is held out" in facts["warnings"]


def test_the_real_mixture_of_eight_sources_is_split_in_proportion(tmp_path):
    path = DATA / "tulu_schema_mix.jsonl"
    if not path.is_file():
        pytest.skip(f"no real rows in {DATA}")
    settings = {"corpus": {"kind": "jsonl", "path": str(path), "heldout_rows": 600}, "world_seed": 0}
    facts = make_mixture(settings, {}, tmp_path, Machine())
    table = json.loads((tmp_path / "mixture.json").read_text())["sources"]
    assert facts["counts"]["train_rows"] + facts["counts"]["heldout_rows"] == 5996
    for source in table.values():
        rows = source["train"] + source["heldout"]
        assert abs(source["heldout"] - 600 * rows / 5996) <= 1, source


STREAM = """
import resource, sys
from pathlib import Path
from harness.config.machine import Machine
from harness.stages.mixture import make_mixture
out = Path(sys.argv[2])
make_mixture({"corpus": {"kind": "jsonl", "path": sys.argv[1]}, "world_seed": 0}, {}, out, Machine())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_text_of_the_corpus(tmp_path):
    peaks = []
    for name, count in (("few", 2_000), ("many", 6_000)):
        folder = tmp_path / name
        folder.mkdir()
        with open(folder / "rows.jsonl", "w") as file:
            for number in range(count):
                file.write(json.dumps(row(f"{number} " + "lorem" * 1200, "ipsum" * 1200)) + "\n")
        (folder / "out").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", STREAM, str(folder / "rows.jsonl"), str(folder / "out")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) / 1024)
    more_text = 4_000 * 12_000 / 2**20  # 46 MB
    assert peaks[1] - peaks[0] < more_text / 3, peaks


def system(document, request, answer):
    first = {"role": "system", "content": document}
    return {"id": document, "messages": [first, *row(request, answer)["messages"]]}


def test_rows_that_share_their_first_turn_are_held_out_by_their_whole_prompts(tmp_path):
    rows = [system(f"Document {i}.", "Summarise.", f"w{i}") for i in range(100)]
    out, facts = mixture(tmp_path, rows)
    assert facts["counts"]["heldout_rows"] == 10 and facts["counts"]["train_rows"] == 90
    assert json.loads((out / "mixture.json").read_text())["rows_by_whole_prompt"] == 100
    (train,), (held,) = (columns(out / name, "prompt_hash") for name in ("train.parquet", "heldout.parquet"))
    assert len({*train, *held}) == 100


def test_a_greeting_that_opens_a_conversation_is_no_prompt_by_itself(tmp_path):
    def greeted(i):
        turns = [("user", "Hi"), ("assistant", "Hello"), ("user", f"question {i}"), ("assistant", "a")]
        return {"id": f"g{i}", "messages": [{"role": role, "content": text} for role, text in turns]}

    out, facts = mixture(tmp_path, [greeted(i) for i in range(50)] + [row(f"p{i}", "a") for i in range(50)])
    (held,) = columns(out / "heldout.parquet", "id")
    assert facts["counts"]["heldout_rows"] == 10 and {one[0] for one in held} == {"g", "o"}


def test_the_branches_of_a_dialogue_stay_together_where_they_are_few(tmp_path):
    rows = [system(f"Be brief, {i}.", f"p{i // 4}", "a") for i in range(200)]
    out, _ = mixture(tmp_path, rows, {"heldout_rows": 40})
    assert "rows_by_whole_prompt" not in json.loads((out / "mixture.json").read_text())
    (held,) = columns(out / "heldout.parquet", "prompt_hash")
    assert sorted(held.count(one) for one in set(held)) == [4] * 10


@pytest.mark.parametrize(
    ("rows", "corpus", "said"),
    [
        ([row("p", "a")], {}, r"0 of 1 rows \(1 different prompts\)"),
        ([row("p", "a"), row("q", "a")], {}, "1 of 2 rows"),
        ([row("p", "a")] * 30, {}, r"0 of 30 rows \(1 different prompts\)"),
        ([row(f"p{i}", "a") for i in range(60)], {"heldout_rows": 1000}, "12 of 60 rows .* 20 are needed"),
    ],
)
def test_a_corpus_that_holds_out_too_few_rows_to_score_is_refused(tmp_path, rows, corpus, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    asked = {"kind": "jsonl", "path": str(path), "heldout_rows": 10, **corpus}
    settings = {"corpus": asked, "world_seed": 0, "scored": True}
    with pytest.raises(SettingsError, match=said):
        make_mixture(settings, {}, tmp_path, Machine())
    if len(rows) == 60:
        few = {**settings, "corpus": {**asked, "least_heldout_rows": 12}}
        assert make_mixture(few, {}, tmp_path, Machine())["counts"]["heldout_rows"] == 12


def test_more_sources_than_sixteen_bits_count_are_counted():
    seen = _Seen()
    for number in range(66_000):
        seen.sources.append(number)
    assert seen.arrays()[2].tolist() == list(range(66_000))


def test_the_names_of_many_sources_do_not_fill_a_warning(tmp_path):
    rows = [row("p", "a", f"https://site.org/{i}") for i in range(30)]
    _, facts = mixture(tmp_path, rows)
    (said,) = [one for one in facts["warnings"] if one.startswith("sources without held-out rows")]
    assert "and 20 more" in said
