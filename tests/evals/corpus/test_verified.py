"""Verified accuracy: what counts as right, and what is counted when it is not."""

import math

import pytest
import torch

from harness.config.checks import SettingsError
from harness.evals import HeldoutRow, Options, eval_names, load_eval
from harness.evals.corpus.verified import score, summary, verify
from tests.doubles import FIRST_BYTE, byte_ids, byte_tokenizer, special_id, tiny_llama
from tests.thinking import family_tokenizer, template_of


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("45", "45", True),
        (" 45\n", "45", True),
        ("kw  kw", "kw kw", True),
        ("４５", "45", True),  # full-width digits
        ("KW", "kw", False),  # case is the task in some sources
        ("45.", "45", False),
        ("", "45", False),
        ("2 + 2\n#### 18", "thinking\n#### 18", True),
        ("other thinking #### $1,018.0", "#### 1018", True),
        ("first #### 3, no: #### -4", "#### -4", True),
        ("#### 19", "#### 18", False),
        ("18", "#### 18", None),
        ("#### eighteen", "#### 18", None),
    ],
)
def test_an_answer_is_right_wrong_or_unparsed(answer, truth, right):
    assert verify(answer, truth) is right


def scripted(replies: dict[str, list[int]]):
    """Stands for `generate`: the reply to a prompt is looked up by the last character of its question."""

    def generate(model, tokenizer, prompts, max_new_tokens, **_):
        assert all(prompt[-1] == special_id("<|assistant|>") for prompt in prompts)
        return [replies[chr(prompt[-2] - FIRST_BYTE)][:max_new_tokens] for prompt in prompts]

    return generate


def ids(text: str, end: bool = True) -> list[int]:
    return byte_ids(text) + ([special_id("<|end|>")] if end else [])


def row(question: str, truth: str | None, source: str = "add") -> HeldoutRow:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "label"}]
    return HeldoutRow(question, messages, source, "h" + question, truth)


def test_items_and_counts_tell_right_wrong_empty_unparsed_and_cut_off(monkeypatch):
    replies = {
        "a": ids("45"),
        "b": ids("44"),
        "c": ids(""),
        "d": ids("18"),
        "e": ids("45", end=False),
        "f": ids("x"),
    }
    monkeypatch.setattr("harness.evals.corpus.verified.generate", scripted(replies))
    rows = [
        row("a", "45"),
        row("b", "45"),
        row("c", "45", "sort"),
        row("d", "#### 18", "sort"),
        row("e", "45", "sort"),
        row("f", "x", "canary"),
        row("g", None),
    ]
    scored = score(tiny_llama(), byte_tokenizer(), rows, Options(max_new_tokens=4))
    assert [item.score for item in scored.items] == [1, 0, 0, 0, 1, 1]
    assert [item.prediction for item in scored.items] == ["45", "44", "", "18", "45", "x"]
    assert [item.hit_length_limit for item in scored.items] == [False, False, False, False, True, False]
    assert scored.counts == {
        "without_truth": 1,
        "empty_answers": 1,
        "unparsed_answers": 1,
        "unclosed_reasoning": 0,
        "hit_length_limit": 1,
    }
    assert scored.generated_tokens == 3 + 3 + 1 + 3 + 2 + 2
    scores = {one.source: one for one in summary(scored.items)}
    assert scores["all"].score == pytest.approx(2 / 5) and scores["all"].items == 5
    assert scores["all"].standard_error == pytest.approx(math.sqrt((2 * 0.6**2 + 3 * 0.4**2) / 4 / 5))
    assert scores["canary"].score == 1.0 and scores["sort"].score == pytest.approx(1 / 3)


def test_greedy_answers_do_not_depend_on_the_batch():
    rows = [row("q" * (1 + i % 9), "x") for i in range(30)]
    one = score(tiny_llama(), byte_tokenizer(), rows, Options(max_new_tokens=6, batch_size=1)).items
    many = score(tiny_llama(), byte_tokenizer(), rows, Options(max_new_tokens=6, batch_size=7)).items
    assert [item.prediction for item in one] == [item.prediction for item in many]


def test_answers_equal_argmax_from_a_whole_forward_pass():
    model, tokenizer = tiny_llama(), byte_tokenizer()
    item = score(model, tokenizer, [row("abc", "x")], Options(max_new_tokens=5)).items[0]
    sequence = [special_id("<|user|>"), *ids("abc", end=False), special_id("<|assistant|>")]
    for _ in range(5):
        token = int(model(torch.tensor([sequence])).logits[0, -1].argmax())
        if token == special_id("<|end|>"):
            break
        sequence.append(token)
    assert item.prediction == tokenizer.decode(sequence[5:], skip_special_tokens=True)


def test_an_unknown_evaluation_is_refused_with_the_list():
    assert eval_names() == ("heldout", "verified")
    with pytest.raises(SettingsError, match="heldout, verified"):
        load_eval("verifed")


def test_reasoning_is_no_part_of_an_answer_and_an_unclosed_one_is_none(monkeypatch):
    tokenizer = family_tokenizer("qwen3")
    texts = {
        "a": "45<|im_end|>",
        "b": "<think>\n44, no\n</think>\n\n45<|im_end|>",
        "c": "<think>\n44, no",
        "d": "<think>\n44, no<|im_end|>",
        "e": "44</think>45<|im_end|>",
    }

    def generate(model, tokenizer, prompts, max_new_tokens, **_):
        asked = [tokenizer.decode(prompt).rpartition("<|im_end|>")[0][-1] for prompt in prompts]
        return [tokenizer(texts[one], add_special_tokens=False)["input_ids"] for one in asked]

    monkeypatch.setattr("harness.evals.corpus.verified.generate", generate)
    rows = [row(question, "45") for question in texts]
    scored = score(tiny_llama(), tokenizer, rows, Options(max_new_tokens=64))
    assert [item.score for item in scored.items] == [1, 1, 0, 0, 1]
    assert [item.prediction for item in scored.items] == ["45", "45", "", "", "45"]
    assert scored.counts["unclosed_reasoning"] == scored.counts["empty_answers"] == 2
    # the reasoning of these prompts is begun by the prompt itself
    tokenizer.chat_template = template_of("qwen3_5_think")
    scored = score(tiny_llama(), tokenizer, rows, Options(max_new_tokens=64))
    assert [item.score for item in scored.items] == [0, 1, 0, 0, 1]
    assert scored.counts["unclosed_reasoning"] == 3
