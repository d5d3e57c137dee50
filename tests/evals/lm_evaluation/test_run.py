"""Public benchmarks: every benchmark on invented rows, known answers, and scores equal to plain lm-eval's."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from harness.config.checks import SettingsError
from harness.evals import UNREAD
from harness.evals.benchmarks import INVENTED, REAL, benchmark_names, data_files, load_benchmark
from harness.evals.lm_evaluation.model import LmEvalModel
from harness.evals.lm_evaluation.run import Data, check_lm_eval, run_benchmark, summary
from harness.evals.lm_evaluation.tasks import open_tasks
from harness.stand_ins.benchmark_items import ITEMS, write_items
from tests.doubles import byte_tokenizer, tiny_llama
from tests.fake_hub import COMMIT, FakeHub, Repository
from tests.real import DATA
from tests.thinking import chat, family_tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[evals]'")

# What tells a row's prompt from another's, and its right answer in the words of a chatty model.
ASKED = {
    "gsm8k": ("question", lambda row: f"Let me see. The answer is {row['answer'].split('#### ')[1]}."),
    "bbh": ("input", lambda row: f"Thinking.\n\nSo the answer is {row['target']}"),
    "gpqa": ("Question", None),
    "mmlu": ("question", lambda row: f"Well, it is ({'ABCD'[row['answer']]})"),
    "mmlu_pro": ("question", lambda row: f"So the answer is ({row['answer']})."),
    "drop": ("passage", lambda row: row["answer"]["number"] or row["answer"]["spans"][0]),
    "math": ("problem", lambda row: f"So it is $\\boxed{{{row['problem'].split()[4][:-1]}/2}}$, I hope"),
    "ifeval": ("prompt", lambda row: "HELLO THERE MY FRIEND"),
    "humaneval": ("prompt", lambda row: row["canonical_solution"]),
    "humaneval_plus": ("prompt", lambda row: "```python\n" + row["prompt"] + row["canonical_solution"]),
    "mbpp": ("text", lambda row: row["code"]),
    "popqa": ("question", lambda row: json.loads(row["possible_answers"])[1].upper() + ", I think"),
}
CHOSEN = {
    "pubmedqa": ("question", lambda row, said: said.strip() == row["final_decision"]),
    "truthfulqa": ("question", lambda row, said: said.strip() != "Yes"),
    "musr": ("narrative", lambda row, said: said.strip() == row["answer_choice"]),
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    model = tiny_llama()
    model.config.max_position_embeddings = 1 << 15
    return model


@pytest.fixture
def ask(model, tokenizer, tmp_path):
    """Run a benchmark on its invented rows; (benchmark, scored, score of all)."""

    def run(name, write=None, model=model, **options):
        data = Data(tuple(data_files(name, write_items(name, tmp_path))))
        scored, _ = run_benchmark(name, load_benchmark(name), data, model, tokenizer, write=write, **options)
        return scored, next(
            score for score in summary(name, load_benchmark(name), scored.items) if score.source == "all"
        )

    return run


def asked_row(name, prompt):
    """The row that a prompt asks: of those that it shows, the last."""
    rows = [row for found in ITEMS[name].values() for row in found]
    field = (ASKED | CHOSEN)[name][0]
    return max(rows, key=lambda row: prompt.rfind(str(row[field])))


def perfect_writer(name, tokenizer):
    def answer(prompt):
        row = asked_row(name, prompt)
        if name == "gpqa":
            line = next(line for line in prompt.splitlines() if line.endswith(f") {row['Correct Answer']}"))
            return f"Hence {line[:3]} it is"
        if name == "drop":  # two questions on one passage
            row = next(one for one in ITEMS[name]["drop_train.jsonl"] if _asks(one, prompt))
        return ASKED[name][1](row)

    def write(prompts, **_):
        texts = [answer(tokenizer.decode(prompt)) for prompt in prompts]
        return [
            [*tokenizer.encode(text, add_special_tokens=False), tokenizer.convert_tokens_to_ids("<|end|>")]
            for text in texts
        ]

    return write


def _asks(row, prompt):
    return prompt.rstrip().endswith(f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:<|assistant|>")


def test_every_card_is_tried_on_rows_and_says_on_which():
    assert set(ITEMS) == set(ASKED | CHOSEN) == set(benchmark_names())
    for name in benchmark_names():
        benchmark = load_benchmark(name)
        text = benchmark.describe(name)
        assert benchmark.column in text and benchmark.tested in (REAL, INVENTED) and repr(benchmark.example[1]) in text
        assert 0 <= benchmark.floor < 1 and benchmark.data.count("/") == 1


@pytest.mark.parametrize("name", ASKED)
def test_right_answers_in_a_chatty_models_words_score_1(name, ask, tokenizer):
    scored, score = ask(name, perfect_writer(name, tokenizer))
    assert score.score == 1.0, [(item.prediction, item.parsed, item.target) for item in scored.items]
    assert scored.counts["unparsed_answers"] == scored.counts["hit_length_limit"] == 0


@pytest.mark.parametrize("name", ASKED)
def test_silence_scores_nothing_and_is_counted(name, ask):
    scored, score = ask(name, lambda prompts, **_: [[] for _ in prompts])
    assert score.score == 0.0
    assert scored.counts["empty_answers"] == len(scored.items)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_likeliest_choice_counts(name, ask, monkeypatch):
    right = CHOSEN[name][1]

    def likelihood(self, requests, **_):
        return [(0.0 if right(asked_row(name, prompt), said) else -50.0, False) for (prompt, said), _, _ in requests]

    monkeypatch.setattr(LmEvalModel, "_loglikelihood_tokens", likelihood)
    assert ask(name)[1].score == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["gsm8k", "musr"])
def test_a_prompt_that_does_not_fit_is_never_cut(name, ask):
    small = tiny_llama()
    small.config.max_position_embeddings = 40
    scored, score = ask(name, model=small)
    assert score.score == 0.0 and scored.counts["truncated"] == len(scored.items) > 0
    assert all(item.truncated for item in scored.items)


def test_gpqa_shows_every_model_the_choices_in_one_order(ask):
    one, two = (ask("gpqa", lambda prompts, **_: [[] for _ in prompts])[0].items for _ in range(2))
    assert [item.prompt_hash for item in one] == [item.prompt_hash for item in two]
    assert len({item.target for item in one}) > 1


@pytest.mark.parametrize("name", ["mmlu", "pubmedqa"])
def test_batches_and_their_order_change_no_score(name, ask, monkeypatch):
    benchmark = load_benchmark(name)
    monkeypatch.setattr(
        f"harness.evals.benchmarks.{name}.BENCHMARK", replace(benchmark, max_new_tokens=benchmark.max_new_tokens and 12)
    )
    found = []
    for rows in (64, 1, 3):
        monkeypatch.setattr("harness.evals.lm_evaluation.run.LmEvalModel", partial(LmEvalModel, rows_at_once=rows))
        found.append([(item.id, item.source, item.prediction, item.score) for item in ask(name)[0].items])
    assert found[0] == found[1] == found[2]


def test_a_sample_is_in_proportion_to_the_subsets_and_nested(ask):
    few, all_ = (
        ask("mmlu", lambda p, **_: [[] for _ in p], limit=2)[0],
        ask("mmlu", lambda p, **_: [[] for _ in p])[0],
    )
    assert sorted(item.source for item in few.items) == sorted({item.source for item in all_.items})
    assert few.counts["of"] == len(all_.items) == 4


def test_columns_name_the_suite_and_change_with_the_card():
    benchmark = load_benchmark("gsm8k")
    assert benchmark.column.startswith("exact_match@lm-eval-0.4.13/")
    assert replace(benchmark, shots=4).column != benchmark.column != replace(benchmark, stop=("\n",)).column
    assert replace(benchmark, title="another").column == benchmark.column


def test_data_that_is_not_there_and_another_lm_eval_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"evals.data_dir=.*gsm8k needs gsm8k.jsonl"):
        data_files("gsm8k", tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.4.12")
    with pytest.raises(SettingsError, match=r"lm-eval 0.4.12.*written for lm-eval 0.4.13"):
        check_lm_eval()


def test_an_answer_that_cannot_be_read_is_wrong_and_counted(ask, tokenizer):
    said = tokenizer.encode("no idea", add_special_tokens=False)
    scored, score = ask("bbh", lambda prompts, **_: [said for _ in prompts])
    assert score.score == 0.0 and {item.parsed for item in scored.items} == {UNREAD}
    assert scored.counts["unparsed_answers"] == 3


@pytest.fixture(scope="module")
def plain(model, tokenizer):
    """lm-eval's own back end on the same model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu", max_length=1 << 15)


@pytest.mark.parametrize(("name", "new"), [("gsm8k", 24), ("pubmedqa", None)])
def test_scores_are_those_of_plain_lm_eval(name, new, model, tokenizer, plain, tmp_path, monkeypatch):
    """The same prompts, answers and scores, item by item, on real rows where they are there."""
    if not (DATA / f"{name}_test.jsonl").is_file():
        pytest.skip(f"no real rows in {DATA}")
    benchmark = replace(load_benchmark(name), max_new_tokens=new, shots=1 if new else 0)
    data = Data(tuple(data_files(name, DATA)))
    ours, _ = run_benchmark(name, benchmark, data, model, tokenizer, limit=6)
    monkeypatch.setattr("harness.evals.lm_evaluation.run.LmEvalModel", lambda *_, **__: plain)
    plain.tally = LmEvalModel(model, tokenizer, chat=True).tally
    theirs, _ = run_benchmark(name, benchmark, data, model, tokenizer, limit=6)
    for one, other in zip(ours.items, theirs.items, strict=True):
        assert (one.id, one.prompt_hash, one.prediction, one.parsed, one.score) == (
            other.id,
            other.prompt_hash,
            other.prediction,
            other.parsed,
            other.score,
        )


def test_cards_are_shown_one_by_one_and_in_a_list(capsys):
    from harness import grid

    assert grid.main(["cards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["heldout", "verified", *benchmark_names()]
    assert grid.main(["cards", "verified"]) == grid.main(["cards", "drop"]) == 0
    assert "accuracy = mean over items" in (shown := capsys.readouterr().out) and "F1 of the answer's words" in shown
    assert grid.main(["cards", "gsm9k"]) == 2
    assert "gsm9k" in capsys.readouterr().err


@pytest.mark.parametrize("name", ASKED)
def test_a_thinking_models_answers_are_graded_without_their_reasoning(name, ask, tokenizer):
    thinks = perfect_writer(name, tokenizer)
    # stop texts, commas and another answer stand in the reasoning
    reasoning = tokenizer.encode(
        "<think>\nNo, wait.\n\nQ: Question: 7 (A) ``` \n</think>\n\n", add_special_tokens=False
    )
    scored, score = ask(name, lambda prompts, **options: [reasoning + one for one in thinks(prompts, **options)])
    assert score.score == 1.0, [(item.prediction, item.parsed, item.target) for item in scored.items]
    assert scored.counts["unclosed_reasoning"] == 0

    scored, score = ask(name, lambda prompts, **options: [reasoning[:-12] + one for one in thinks(prompts, **options)])
    draws = load_benchmark(name).samples
    assert score.score == 0.0 and scored.counts["unclosed_reasoning"] == draws * len(scored.items)


def test_a_stop_text_ends_an_answer_and_not_the_reasoning_before_it(monkeypatch):
    tokenizer, seen = family_tokenizer("qwen3_5_think"), []

    def generate(model, tokenizer, prompts, *_, ended, **__):
        for text in ("hm\n\n", "hm\n\nso</think>a", "hm\n\nso</think>a\n\n"):
            seen.append(ended(tokenizer.encode(text, add_special_tokens=False)))
        return [[] for _ in prompts]

    monkeypatch.setattr("harness.evals.lm_evaluation.model.generate", generate)
    model = LmEvalModel(tiny_llama(), tokenizer, chat=True)
    asked = tokenizer.encode(model.apply_chat_template(chat("q")))
    model._write([asked], 8, 0.0, 1.0, [0], stop=["\n\n"])
    assert seen == [False, False, True]


@pytest.mark.parametrize(("family", "sent"), [("qwen3", []), ("qwen2_5", ["\n\n"])])
def test_a_server_gets_no_stop_text_for_a_model_that_may_reason(family, sent):
    tokenizer, stops = family_tokenizer(family), []

    def write(prompts, stop, **_):
        stops.append(stop)
        return [tokenizer.encode("<think>a\n\nb</think>42\n\nc<|im_end|>") for _ in prompts]

    model = LmEvalModel(tiny_llama(), tokenizer, chat=True, write=write)
    request = SimpleNamespace(args=("q", {"until": ["\n\n"], "max_gen_toks": 8}))
    assert model.generate_until([request]) == ["42"] and stops == [sent]


@pytest.mark.parametrize(("choices", "end"), [(True, "<think>\n\n</think>\n\n"), (False, "<think>\n")])
def test_a_choice_is_scored_after_reasoning_that_the_prompt_begins(choices, end):
    model = LmEvalModel(tiny_llama(), family_tokenizer("qwen3_5_think"), chat=True, choices=choices)
    assert model.apply_chat_template(chat("q")).endswith("<|im_start|>assistant\n" + end)


@pytest.mark.parametrize(
    ("fault", "token", "sentence"),
    [
        ("gated", None, r"evals\.names='{data}' .*accept it at {hub}/datasets/{data}, then `hf auth login`"),
        ("gated", "hf_secret", r"accept it at {hub}/datasets/{data} with the account of your token"),
        ("refused", "hf_secret", r"the hub refuses the token \(401\)"),
        ("status", None, r"the hub at {hub} answers 503; .*, or give its JSON lines by evals\.data_dir"),
    ],
)
def test_a_benchmark_that_the_hub_does_not_give_is_refused_in_one_sentence(
    fault, token, sentence, monkeypatch, tmp_path
):
    benchmark = load_benchmark("pubmedqa")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("items\n")
    with FakeHub({benchmark.data: Repository(tmp_path / "data", fault)}) as hub:
        hub.use(monkeypatch, tmp_path / "cache", token)
        with pytest.raises(SettingsError, match=sentence.format(hub=hub.url, data=benchmark.data)) as refusal:
            open_tasks("pubmedqa", benchmark, Data())
    assert "\n" not in str(refusal.value) and "secret" not in str(refusal.value)


def test_a_revision_that_a_benchmark_does_not_have_is_refused_by_its_setting(monkeypatch, tmp_path):
    benchmark = load_benchmark("pubmedqa")
    with FakeHub({benchmark.data: Repository(tmp_path)}) as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        with pytest.raises(SettingsError, match=r"^evals\.revisions\.pubmedqa='v9' .*no such revision"):
            open_tasks("pubmedqa", benchmark, Data(revision="v9"))


def test_a_benchmark_is_read_from_the_hub_at_the_commit_that_its_record_names(monkeypatch, tmp_path):
    benchmark = load_benchmark("pubmedqa")
    rows = ITEMS["pubmedqa"]["pubmedqa.jsonl"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- {config_name: pqa_labeled, data_files: train.jsonl}\n---\n")
    with FakeHub({benchmark.data: Repository(tmp_path, "gated")}) as hub:
        hub.use(monkeypatch, tmp_path / "cache", "accepted")
        tasks, revision = open_tasks("pubmedqa", benchmark, Data())
    assert revision == COMMIT and len(tasks["pubmedqa"].eval_docs) == len(rows)
