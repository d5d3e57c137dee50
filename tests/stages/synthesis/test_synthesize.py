"""The synthesize stage on a tiny world of bytes: a scripted teacher, every filter, what is measured and shown."""

import json
import math
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_from_disk

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.data.chat import render
from harness.data.corpora._rows import prompt_hash
from harness.data.corpora.mini import Corpus
from harness.data.sequences import draw_seed
from harness.models.loading import load_model, tokenizer_hash
from harness.stages.labels import save_rows
from harness.stages.synthesis import synthesize
from harness.stages.synthesis.prompting import GeneratedRow, SyntheticPrompter
from harness.stages.synthesis.synthesize import make_synthesize
from harness.teachers import teacher
from tests.doubles import byte_tokenizer, save_tiny, tiny_llama
from tests.fake_server import FakeServer, adopt
from tests.stages.small_world import files, stopped
from tests.thinking import family_tokenizer

CPU = Machine(device="cpu")
TOKENIZER = byte_tokenizer()
USER, END = "<|assistant|>", "<|end|>"  # what ends a prompt, and an answer
HELDOUT = "Say hello"


def pair(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.fixture
def world(tmp_path):
    """A mixture of 14 rows of two sources; the subset trains on 10, validates on 2 and leaves 2 out."""
    rows = [
        pair(f"Add {10 + i} and 2.", str(12 + i)) if i % 2 else pair(f"Reverse {chr(98 + i)}k.", "x") for i in range(14)
    ]
    (tmp_path / "mixture").mkdir()
    for name, messages in (("train", rows), ("heldout", [pair(HELDOUT, "hello")])):
        table = {
            "id": [f"r{i}" for i in range(len(messages))],
            "messages": messages,
            "source": [("reverse", "add")[i % 2] for i in range(len(messages))],
            "prompt_hash": [prompt_hash(m) for m in messages],
        }
        pq.write_table(pa.table(table), tmp_path / "mixture" / f"{name}.parquet")
    write_corpus(tmp_path, {"kind": "jsonl", "files": []})
    for name, part in (("train", range(10)), ("validation", range(10, 12))):
        rendered = [render(TOKENIZER, rows[i], 64) for i in part]
        columns = {"row": list(part), "id": [f"r{i}" for i in part]}
        columns |= {key: [getattr(one, key) for one in rendered] for key in ("input_ids", "starts", "ends")}
        save_rows(columns, tmp_path / "subset" / name)
    (tmp_path / "subset" / "subset.json").write_text(json.dumps({"tokenizer_hash": tokenizer_hash(TOKENIZER)}))
    return {
        "subset": tmp_path / "subset",
        "mixture": tmp_path / "mixture",
        "teacher": save_tiny(tmp_path / "teacher", seed=1),
    }


def write_corpus(root, identity):
    (root / "mixture" / "mixture.json").write_text(json.dumps({"corpus": identity}))


def synthesis(**changes):
    return {
        "synthetic_rows": 4,
        "synthetic_ratio": 0.0,
        "examples_in_context": 2,
        "seed": 0,
        "sampling_temperature": 1.0,
        "max_new_tokens": 8,
        "max_length": 40,
        "least_prompt_tokens": 1,
        "least_answer_tokens": 1,
        "near_duplicate": 0.0,
        "verified": False,
        "self_consistency": 0.0,
        "consistency_samples": 5,
    } | changes


def scripted(monkeypatch, prompts, answers):
    """A teacher that writes these texts in turn; returns the prompts it was shown."""
    shown, said = [], {"prompt": iter(prompts), "answer": iter(answers)}

    def write(model, tokenizer, ids, limit, temperature, seeds, batch_size, stop_ids):
        shown.extend(tokenizer.decode(one) for one in ids)
        what = "answer" if stop_ids == {tokenizer.eos_token_id} else "prompt"
        return [tokenizer(next(said[what]), add_special_tokens=False)["input_ids"] for _ in ids]

    monkeypatch.setattr(teacher, "generate", write)
    monkeypatch.setattr(synthesize, "ROWS_AT_ONCE", 8)
    return shown


def run(world, tmp_path, name="s", **changes):
    (tmp_path / name).mkdir()
    return make_synthesize(synthesis(**changes), world, tmp_path / name, CPU), tmp_path / name


def rows_of(folder):
    return [TOKENIZER.decode(ids) for ids in load_from_disk(folder / "synthetic")["input_ids"]]


def test_a_cell_too_small_for_validation_rows_has_synthetic_ones(world, tmp_path, monkeypatch):
    shutil.rmtree(world["subset"] / "validation")
    save_rows({name: [] for name in ("row", "id", "input_ids", "starts", "ends")}, world["subset"] / "validation")
    scripted(monkeypatch, ["One" + USER, "Reverse lk." + USER, *["Two" + USER] * 6], ["1" + END] * 8)
    facts, folder = run(world, tmp_path, synthetic_rows=3)
    assert facts["counts"]["kept"] == 3 and any("lk." in row for row in rows_of(folder))


def test_synthetic_rows_are_new_well_formed_and_never_scored_prompts(world, tmp_path, monkeypatch):
    scripted(
        monkeypatch,
        prompts=[
            "One" + USER,
            "no end",
            "say  HELLO" + USER,
            "Reverse bk." + USER,
            "Two" + USER,
            "One" + USER,
            "x" * 60 + USER,
            "Reverse lk." + USER,  # row 10, of the validation rows
            *["Three" + USER, *["Four" + USER] * 7],
        ],
        answers=["1" + END, "h" + END, "6" + END, "cut", "1" + END, *["3" + END] * 3, *["4" + END] * 7],
    )
    facts, folder = run(world, tmp_path, synthetic_rows=3)
    kept = [("One", 1), ("Three", 3), ("Four", 4)]
    assert rows_of(folder) == [f"<|user|>{p}<|assistant|>{a}<|end|>" for p, a in kept]
    rejected = {
        "malformed prompt": 1,
        "malformed answer": 1,
        "too long": 1,
        "held-out prompt": 1,
        "validation prompt": 1,
        "copy of a human row": 1,
        "repeat": 1,
    }
    assert facts["counts"] == {"asked": 10, "kept": 3, "wanted": 3, **rejected}
    written = json.loads((folder / "synthetic.json").read_text())
    assert written["rejected"] == rejected and written["distinct_share"] == 1.0
    assert facts["metrics"]["contaminated_share"] == 0.2 and facts["metrics"]["rejected.repeat"] == 0.1


def test_examples_are_the_cells_own_training_rows_of_one_source_and_nothing_else(world, tmp_path, monkeypatch):
    shown = scripted(monkeypatch, [f"New {i}{USER}" for i in range(40)], [f"{i}{END}" for i in range(40)])
    facts, folder = run(world, tmp_path, synthetic_rows=40, examples_in_context=3)
    own = {f"Add {10 + i} and 2." if i % 2 else f"Reverse {chr(98 + i)}k." for i in range(10)}
    seen = []
    for text in shown:
        prompts = [turn.partition("<|assistant|>")[0] for turn in text.split("<|user|>")[1:4]]
        assert len(set(prompts)) == 3 and len({prompt.split()[0] for prompt in prompts}) == 1
        seen += prompts
    assert set(seen) == own, "every training row, and no validation, held-out or left-out row"
    sources = json.loads((folder / "synthetic.json").read_text())["sources"]
    assert {name: counts["kept"] for name, counts in sources.items()} == {
        name: sum(word in text.split("<|user|>")[1] for text in shown) // 2  # shown for the prompt and the answer
        for name, word in (("add", "Add"), ("reverse", "Reverse"))
    }
    assert facts["metrics"]["source_share.add"] + facts["metrics"]["source_share.reverse"] == 1


def test_measures_compare_with_the_human_rows_and_the_teachers_likelihood_is_its_own(world, tmp_path, monkeypatch):
    scripted(monkeypatch, [f"New {i}{USER}" for i in range(8)], [f"{i}{END}" for i in range(8)])
    facts, folder = run(world, tmp_path)
    found = facts["metrics"]
    assert found["mean_prompt_tokens"] == 2 + len("New 0") and found["mean_answer_tokens"] == 2
    assert found["distinct_1"] == 5 / 12  # New 0 0, New 1 1, New 2 2, New 3 3
    assert found["human_similarity"] == pytest.approx(1 / 12)  # "New 2" shares its 2 with "Add 11 and 2."
    assert found["human_self_similarity"] > 0.5
    model, total, count = load_model(world["teacher"]), 0.0, 0
    for row in load_from_disk(folder / "synthetic"):
        logprobs = torch.log_softmax(model(torch.tensor([row["input_ids"]])).logits[0].detach(), -1)
        for place in range(row["starts"][0], row["ends"][0]):
            total, count = total - logprobs[place - 1, row["input_ids"][place]].item(), count + 1
    assert found["teacher_nll"] == pytest.approx(total / count, rel=1e-5) and found["human_teacher_nll"] > 0
    assert "right_share" not in found, "nothing is said of truth where the corpus does not know it"
    assert json.dumps(facts, allow_nan=False) and all(math.isfinite(value) for value in found.values())
    assert facts["cost"]["teacher_tokens"] > 0 and facts["warnings"] == []


def test_near_duplicates_are_dropped_where_they_are_asked_for(world, tmp_path, monkeypatch):
    prompts = ["Tell me of kw now", "Tell me of zt now", "Say hello you", "Who goes there"]
    script = [[f"{one}{USER}" for one in prompts] * 2, [f"{i}{END}" for i in range(8)]]
    scripted(monkeypatch, *script)
    facts, _ = run(world, tmp_path, synthetic_rows=2, near_duplicate=0.7)
    assert facts["counts"]["near-duplicate"] == 1 and facts["counts"]["like a held-out prompt"] == 1
    scripted(monkeypatch, *script)
    facts, _ = run(world, tmp_path, "off", synthetic_rows=2)
    assert facts["counts"] == {"asked": 2, "kept": 2, "wanted": 2}


def test_answers_are_verified_where_the_corpus_knows_the_truth(world, tmp_path, monkeypatch):
    write_corpus(tmp_path, Corpus().identity(world_seed=0))
    prompts = ["Sum of 30 and 4?", "Sum of 31 and 4?", "Sum of some?", "Reverse zt."]
    answers = ["34", "36", "7", "tz"]
    script = [[one + USER for one in prompts] * 2, [one + END for one in answers] * 2]
    scripted(monkeypatch, *script)
    facts, folder = run(world, tmp_path, synthetic_rows=2, verified=True)
    assert facts["counts"] == {"asked": 4, "kept": 2, "wanted": 2, "wrong answer": 1, "truth unknown": 1}
    assert rows_of(folder)[1] == "<|user|>Reverse zt.<|assistant|>tz<|end|>"
    scripted(monkeypatch, *script)
    facts, _ = run(world, tmp_path, "unfiltered")
    assert facts["metrics"]["truth_known_share"] == 3 / 4
    assert facts["metrics"]["right_share"] == 2 / 3, "of the rows whose truth is known"


def test_verifying_without_a_verifier_is_refused_before_a_model_is_loaded(world, tmp_path):
    with pytest.raises(SettingsError, match=r"method.verified=True.*corpus=jsonl"):
        run(world | {"teacher": tmp_path / "no such folder"}, tmp_path, verified=True)


def test_only_rows_that_pass_the_other_filters_are_sampled_again_and_have_to_win_the_vote(world, tmp_path, monkeypatch):
    first, then = ("One", HELDOUT, "Two", "One", *"abcd"), ("One", *"efghijk")
    answers = [["1", "h", "2", "1", *"abcd"], ["1", *"efghijk"]]
    # sampled again, three times each, are One, Two, One and a to d, the second One being no repeat yet; then e to k
    again = [[1, 2, 1, *"abcd"], [1, 3, 1, *"abcd"], [1, 3, 1, *"xxxx"], *["efghijk"] * 3]
    said = [*answers[0], *(one for draw in again[:3] for one in draw)]
    said += [*answers[1], *(one for draw in again[3:] for one in draw)]
    shown = scripted(monkeypatch, [one + USER for one in first + then], [f"{one}{END}" for one in said])
    facts, folder = run(world, tmp_path, synthetic_rows=6, self_consistency=0.6, consistency_samples=3)
    assert facts["counts"] == {
        "asked": 10,
        "kept": 6,
        "wanted": 6,
        "held-out prompt": 1,
        "repeat": 2,
        "inconsistent answer": 1,
    }
    assert [row.split(">")[2][0] for row in rows_of(folder)] == list("1abcde")
    assert len(shown) == 2 * (8 + 8 + 3 * 7)


def test_a_ratio_asks_for_rows_in_proportion_to_the_human_training_rows(world, tmp_path, monkeypatch):
    scripted(monkeypatch, [f"Row {i}{USER}" for i in range(16)], [f"{i}{END}" for i in range(16)])
    facts, _ = run(world, tmp_path, synthetic_rows=0, synthetic_ratio=1.2)
    assert facts["counts"]["wanted"] == facts["counts"]["kept"] == 12  # of 10 training rows


def test_short_rows_are_dropped_by_their_tokens(world, tmp_path, monkeypatch):
    prompts = [f"{one}{USER}" for one in ("No", "Longer", "Longest", "Stub")] * 2
    answers = [f"{one}{END}" for one in ("yes", "y", "yes", "yes")] * 2
    scripted(monkeypatch, prompts, answers)
    # a prompt is <|user|>, its bytes and <|assistant|>; an answer its bytes and <|end|>
    facts, folder = run(world, tmp_path, synthetic_rows=1, least_prompt_tokens=7, least_answer_tokens=3)
    assert facts["counts"]["too short"] == 2 and rows_of(folder) == ["<|user|>Longest<|assistant|>yes<|end|>"]


def test_a_teacher_that_cannot_write_prompts_is_refused_after_bounded_tries(world, tmp_path):
    # a random model ends a turn now and then, but writes no text that decodes and is answered in 8 tokens
    with pytest.raises(SettingsError, match=r"synthetic_rows=4 cannot be reached: of 16 generated rows"):
        run(world, tmp_path)


class WritingServer(FakeServer):
    """Writes rows told apart by the seeds they are asked with; scores, and answers the probe, as a tiny Llama does."""

    rows = {  # noqa: RUF012
        draw_seed(0, what, number) % 2**63: text
        for number in range(16)
        for what, text in (("prompt", f"New {number}{USER}"), ("answer", f"{number}{END}"))
    }

    def choice(self, request):
        if request.get("seed") not in self.rows:
            return super().choice(request)
        ids = TOKENIZER(self.rows[request["seed"]], add_special_tokens=False)["input_ids"]
        return {"token_ids": ids, "finish_reason": "stop", "stop_reason": ids[-1]}


@pytest.fixture
def served(world, tmp_path):
    """The world with its teacher behind a server, and the server."""
    with WritingServer(tiny_llama(seed=1)) as fake:
        folder, _ = adopt(fake, world["teacher"], tmp_path / "served")
        yield world | {"teacher": folder}, fake


def test_a_served_teacher_is_asked_what_a_teacher_here_is_asked_and_its_rows_are_the_same(
    world, served, tmp_path, monkeypatch
):
    shown = scripted(monkeypatch, [f"New {i}{USER}" for i in range(8)], [f"{i}{END}" for i in range(8)])
    here, local = run(world, tmp_path, "here")
    there, remote = run(served[0], tmp_path, "there")
    assert files(remote / "synthetic") == files(local / "synthetic")
    assert there["counts"] == here["counts"] and there["cost"] == here["cost"] | {"flops": 0}
    asked = [request for request in served[1].requests if request.get("seed") in WritingServer.rows]
    assert sorted(TOKENIZER.decode(request["prompt"]) for request in asked[:16]) == sorted(shown)
    assert {tuple(request["stop_token_ids"]) for request in asked} == {(4, 5), (5,)}
    assert there["metrics"] == pytest.approx(here["metrics"], rel=1e-5), "the likelihood of its own rows among them"
    assert there["metrics"]["teacher_nll"] > 0 and there["metrics"]["human_teacher_nll"] > 0
    assert len(there["warnings"]) == 1 and "FLOPs are not counted" in there["warnings"][0]


def test_a_server_that_cannot_score_leaves_out_that_one_measure_and_the_facts_say_so(served, tmp_path):
    whole, folder = run(served[0], tmp_path, "whole")
    served[1].without = {"prompt_logprobs"}
    facts, less = run(served[0], tmp_path, "less")
    assert whole["metrics"].keys() - facts["metrics"].keys() == {"teacher_nll", "human_teacher_nll"}
    assert "teacher_nll was not measured: teacher.path=" in facts["warnings"][1]
    assert "teacher_nll" not in json.loads((less / "synthetic.json").read_text())
    assert files(less / "synthetic") == files(folder / "synthetic")
    assert facts["cost"]["teacher_tokens"] < whole["cost"]["teacher_tokens"], "what was not read costs nothing"


def test_a_server_that_moved_is_asked_where_it_is_now(served, tmp_path):
    with WritingServer(tiny_llama(seed=1)) as moved:
        before = served[1].asked
        run(served[0], tmp_path, where={"teacher_url": moved.url})
        assert moved.asked > 8 and served[1].asked == before


@pytest.mark.parametrize("after", [(1,), (2,), (1, 2), (3,)])
def test_stopped_after_some_shards_and_begun_again_it_ends_with_the_same_files(world, tmp_path, monkeypatch, after):
    asked = []

    def write(model, tokenizer, ids, limit, temperature, seeds, batch_size, stop_ids):
        asked.extend(seeds)
        is_answer = stop_ids == {tokenizer.eos_token_id}
        texts = [f"{seed % 3 // 2}{END}" if is_answer else f"Row {seed % 50}{USER}" for seed in seeds]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    monkeypatch.setattr(teacher, "generate", write)
    monkeypatch.setattr(synthesize, "ROWS_AT_ONCE", 8)
    vote = {"synthetic_rows": 9, "self_consistency": 0.6, "consistency_samples": 3}
    facts, straight = run(world, tmp_path, "straight", **vote)
    once, asked[:] = sorted(asked), []
    again, last = stopped(monkeypatch, tmp_path / "kept", after, lambda name: run(world, tmp_path, name, **vote))
    assert files(last) == files(straight) and sorted(asked) == once, "nothing is asked for twice"
    assert again.pop("earlier_seconds") > 0 and again == facts
    assert facts["counts"]["asked"] > 8 and facts["counts"]["inconsistent answer"] > 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_think", "qwen2_5"])
def test_a_thinking_teachers_answer_is_what_follows_its_reasoning(family):
    tokenizer = family_tokenizer(family)
    texts = ["<think>\nhm\n</think>\n\n42<|im_end|>", "<think>\nhm<|im_end|>", "hm\n</think>\n\n42<|im_end|>"]

    def answers(prompts, *_):
        return [tokenizer.encode(text) for text in texts]

    asked = {"examples_in_context": 1, "seed": 0, "sampling_temperature": 0.0, "max_new_tokens": 64, "max_length": 500}
    prompter = SyntheticPrompter(SimpleNamespace(tokenizer=tokenizer, answers=answers), asked, {"one": [("q", "a")]})
    rows = [GeneratedRow(number, "r", "", "one", (("q", "a"),)) for number in range(3)]
    assert prompter.answer(rows, "answer") == ["42", "", "42"]
