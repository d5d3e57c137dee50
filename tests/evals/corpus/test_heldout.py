"""Held-out NLL against a plain computation, row by row."""

import math

import pytest
import torch

from harness.data.chat import render, render_rows
from harness.evals import HeldoutRow, Item, Options
from harness.evals.corpus.heldout import nll_sums, score, summary
from tests.doubles import byte_tokenizer, tiny_llama
from tests.thinking import family_tokenizer

MODEL, TOKENIZER = tiny_llama(), byte_tokenizer()


def row(number: int, *texts: str, truth: str | None = None, source: str = "add") -> HeldoutRow:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return HeldoutRow(f"r{number}", messages, source, f"h{number}", truth)


def plain_nll(texts: tuple[str, ...], last_turn_only: bool = False) -> float:
    """One row alone, unpadded: sum of -log softmax over the spans."""
    rendered = render(TOKENIZER, row(0, *texts).messages, 10_000)
    logprobs = MODEL(torch.tensor([rendered.input_ids])).logits[0].log_softmax(-1)
    spans = list(zip(rendered.starts, rendered.ends, strict=True))[-1 if last_turn_only else 0 :]
    return -sum(logprobs[t - 1, rendered.input_ids[t]].item() for start, end in spans for t in range(start, end))


def test_every_row_s_nll_equals_the_row_alone():
    rows = [row(0, "q", "a"), row(1, "a longer question", "abc", "again", "de"), row(2, "q", "")]
    items = score(MODEL, TOKENIZER, rows, Options(batch_size=2)).items
    for item, texts in zip(items, [("q", "a"), ("a longer question", "abc", "again", "de"), ("q", "")], strict=True):
        assert item.nll == pytest.approx(plain_nll(texts), rel=1e-5)
    assert [item.nll_tokens for item in items] == [2, 7, 1]
    assert [item.id for item in items] == ["r0", "r1", "r2"]


def test_the_batch_size_changes_no_result():
    rows = [row(i, "q" * (i % 5 + 1), "a" * (i % 7)) for i in range(20)]
    ones = score(MODEL, TOKENIZER, rows, Options(batch_size=1)).items
    many = score(MODEL, TOKENIZER, rows, Options(batch_size=16)).items
    assert [item.nll for item in ones] == pytest.approx([item.nll for item in many], rel=1e-5)


def test_the_truth_replaces_the_last_answer_and_is_scored_alone():
    rows = [
        row(0, "q", "bad", truth="ok"),
        row(1, "q", "fine", truth="fine"),
        row(2, "q", "a", "r", "b", truth="xy"),
        row(3, "q", "a", "r", "b", truth="b"),
        row(4, "q", "a"),
    ]
    items = score(MODEL, TOKENIZER, rows, Options()).items
    assert items[0].nll_truth == pytest.approx(plain_nll(("q", "ok")), rel=1e-5)
    assert items[1].nll_truth == items[1].nll
    assert items[2].nll_truth == pytest.approx(plain_nll(("q", "a", "r", "xy"), last_turn_only=True), rel=1e-5)
    assert items[3].nll_truth == pytest.approx(plain_nll(("q", "a", "r", "b"), last_turn_only=True), rel=1e-5)
    assert [item.nll_truth_tokens for item in items] == [3, 5, 3, 2, None]
    assert items[4].nll_truth is None


def test_rows_longer_than_the_context_are_cut_flagged_and_counted():
    scored = score(MODEL, TOKENIZER, [row(0, "q", "a" * 600, truth="a" * 600), row(1, "q" * 600, "a")], Options())
    assert [item.truncated for item in scored.items] == [True, True]
    assert [item.nll_tokens for item in scored.items] == [512 - 3, 0]
    assert scored.items[0].nll_truth_tokens == 0
    assert scored.counts == {"truncated": 2, "without_scored_tokens": 1}
    assert [one.items for one in summary(scored.items)] == [1, 1]  # `all` and `add`, from the one scored row


def test_scores_are_per_token_by_source_and_the_canary_stays_out_of_all():
    items = [
        Item("heldout", "a", "add", "", nll=6.0, nll_tokens=3),
        Item("heldout", "b", "sort", "", nll=4.0, nll_tokens=2),
        Item("heldout", "c", "sort", "", nll=0.0, nll_tokens=5),
        Item("heldout", "d", "canary", "", nll=50.0, nll_tokens=5),
    ]
    scores = {(one.metric, one.source): one for one in summary(items)}
    assert scores["nll", "all"].score == pytest.approx(10 / 10)
    assert scores["nll", "sort"].score == pytest.approx(4 / 7)
    assert scores["nll", "canary"].score == 10.0 and math.isnan(scores["nll", "canary"].standard_error)
    # residuals v - mean w: 3, 2, -5; times sqrt(n / (n - 1)) over the sum of weights
    assert scores["nll", "all"].standard_error == pytest.approx(math.sqrt((9 + 4 + 25) * 3 / 2) / 10)
    assert ("nll_truth", "all") not in scores


def test_the_model_is_left_in_the_mode_it_was_in():
    model = tiny_llama(dropout=0.5).train()
    rendered = [render(TOKENIZER, row(0, "q", "abc").messages, 99)]
    assert nll_sums(model, rendered, 1) == nll_sums(model, rendered, 1)
    assert model.training


def test_a_row_whose_template_rewrites_earlier_turns_is_scored_turn_by_turn():
    tokenizer = family_tokenizer("qwen3")
    model = tiny_llama(len(tokenizer))
    whole, first = row(0, "q", "a", "r", "b", truth="b"), row(1, "q", "a")
    other = row(2, "q", "a", "r", "xy")
    items = score(model, tokenizer, [whole, first, other, row(3, "q", "a", "r", "b", truth="xy")], Options()).items
    second = [one.nll - items[1].nll for one in (items[0], items[2])]
    assert items[0].nll_truth == pytest.approx(second[0], rel=1e-5)
    assert items[3].nll_truth == pytest.approx(second[1], rel=1e-5) and items[3].nll == pytest.approx(items[0].nll)
    rows = render_rows(tokenizer, [whole.messages], 500)[0]
    assert items[0].nll_tokens == sum(one.response_tokens for one in rows)
    assert items[0].nll == pytest.approx(sum(nll_sums(model, rows, 1)), rel=1e-5)
