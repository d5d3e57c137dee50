"""Generation against Hugging Face's own, and the independence of a row from the rows beside it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from harness.models.generate import choose, generate, nucleus
from tests.doubles import byte_ids, byte_tokenizer, tiny_llama

END = 5
TOKENIZER = byte_tokenizer()


def prompts(count=9):
    generator = np.random.default_rng(0)
    return [generator.integers(6, 262, int(size)).tolist() for size in generator.integers(2, 12, count)]


class Fixed(torch.nn.Module):
    """A model whose next token has these probabilities, whatever came before."""

    def __init__(self, probabilities):
        super().__init__()
        self.logprobs = torch.tensor(probabilities).log()
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.logprobs.expand(len(input_ids), 1, -1), past_key_values=None)


def test_greedy_text_is_that_of_hugging_face_one_prompt_at_a_time():
    model, limit = tiny_llama(seed=3), 12
    stop = generate(model, TOKENIZER, prompts(1), 3)[0][-1]  # a token that the model really writes
    ours = generate(model, TOKENIZER, prompts(), limit, stop_ids={stop}, batch_size=4)
    for prompt, answer in zip(prompts(), ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
        )
        assert answer == theirs[0, len(prompt) :].tolist()


def test_an_answer_ends_with_its_stop_token_or_at_the_limit():
    answers = generate(tiny_llama(), TOKENIZER, prompts(), 6, temperature=3.0, stop_ids=set(range(0, 262, 3)))
    assert len({len(answer) for answer in answers}) > 2
    for answer in answers:
        assert all(token % 3 for token in answer[:-1])
        assert answer[-1] % 3 == 0 or len(answer) == 6


def test_a_rows_draws_depend_on_its_seed_and_not_on_the_batch():
    model, seeds = tiny_llama(), list(range(9))
    together = generate(model, TOKENIZER, prompts(), 8, temperature=1.0, seeds=seeds)
    apart = [
        generate(model, TOKENIZER, [p], 8, temperature=1.0, seeds=[s])[0] for p, s in zip(prompts(), seeds, strict=True)
    ]
    assert together == apart
    assert together != generate(model, TOKENIZER, prompts(), 8, temperature=1.0, seeds=[s + 1 for s in seeds])


def test_a_pad_token_equal_to_the_end_of_turn_changes_nothing():
    model = tiny_llama()
    ours = generate(model, TOKENIZER, prompts(), 8)
    assert ours == generate(model, byte_tokenizer(pad_is_end=True), prompts(), 8)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, [0.1, 0.2, 0.7]), (0.5, [1 / 54, 4 / 54, 49 / 54])])
def test_sampled_frequencies_are_those_of_the_distribution(temperature, expected):
    model = Fixed([0.1, 0.2, 0.7])
    answers = generate(model, TOKENIZER, [[1]] * 4000, 1, temperature, seeds=1, stop_ids={99})
    shares = np.bincount([answer[0] for answer in answers], minlength=3) / 4000
    assert shares == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.4, [0, 0, 1, 0, 0]),  # the most probable token alone holds as much
        (0.45, [0, 0.25 / 0.65, 0.4 / 0.65, 0, 0]),  # the one that reaches the share is in
        (0.65, [0, 0.25 / 0.65, 0.4 / 0.65, 0, 0]),
        (0.7, [0.2 / 0.85, 0.25 / 0.85, 0.4 / 0.85, 0, 0]),
        (1.0, [0.2, 0.25, 0.4, 0.1, 0.05]),
    ],
)
def test_a_nucleus_holds_the_fewest_most_probable_tokens_in_their_own_proportions(top_p, expected):
    logits = torch.tensor([[0.2, 0.25, 0.4, 0.1, 0.05]], dtype=torch.float64).log().expand(4000, -1)
    evenly = (np.arange(4000) + 0.5) / 4000  # every part of the uniform's range equally often
    shares = np.bincount(choose(logits, 1.0, evenly, top_p), minlength=5) / 4000
    assert shares == pytest.approx(expected, abs=1 / 4000 + 1e-9)


def test_a_nucleus_is_that_of_hugging_face_on_random_logits():
    logits = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    kept = torch.isfinite(TopPLogitsWarper(0.6)(None, (logits / 0.7).double()))
    uniforms = np.random.default_rng(0).random((300, 50))
    seen = torch.zeros_like(kept)
    for draw in uniforms:
        seen[torch.arange(50), choose(logits, 0.7, draw, 0.6)] = True
    assert not (seen & ~kept).any() and (seen.sum(1) > 1).any()
    assert seen.sum() > 0.8 * kept.sum()


def test_a_nucleus_of_everything_is_the_plain_draw_to_the_bit():
    model, seeds = tiny_llama(), list(range(9))
    plain = generate(model, TOKENIZER, prompts(), 8, temperature=1.0, seeds=seeds)
    assert generate(model, TOKENIZER, prompts(), 8, temperature=1.0, seeds=seeds, top_p=1.0) == plain
    narrow = generate(model, TOKENIZER, prompts(), 8, temperature=1.0, seeds=seeds, top_p=1e-9)
    assert narrow == generate(model, TOKENIZER, prompts(), 8)  # the most probable token alone
    half = generate(model, TOKENIZER, prompts(), 8, temperature=1.0, seeds=seeds, top_p=0.5)
    assert half not in (plain, narrow)


def test_dropout_is_off_while_generating_and_on_again_afterwards():
    model = tiny_llama(dropout=0.9)
    expected = generate(model.eval(), TOKENIZER, prompts(), 8)
    model.train()
    assert generate(model, TOKENIZER, prompts(), 8) == expected
    assert all(module.training for module in model.modules())


def test_text_never_runs_past_the_models_context():
    model = tiny_llama()
    model.config.max_position_embeddings = 10
    answers = generate(model, TOKENIZER, [[7] * 4, [7] * 8, [7] * 12], 5, stop_ids={261})
    assert [len(answer) for answer in answers] == [5, 2, 0]


def test_what_all_prompts_begin_with_may_be_read_once_and_answers_stay_the_same():
    model = tiny_llama(seed=3)
    common = byte_ids("a long beginning of worked examples, the same for all")
    asked = [[*common, *byte_ids(end)] for end in ("b", "", "a much longer ending", "b")]
    alone = [generate(model, TOKENIZER, [prompt], 9, temperature=1.0, seeds=[5])[0] for prompt in asked]
    widths, forward = [], model.forward
    model.forward = lambda **given: (widths.append(tuple(given["input_ids"].shape)), forward(**given))[1]
    assert generate(model, TOKENIZER, asked, 9, 1.0, [5] * 4, batch_size=3, share_prefix=True) == alone
    assert widths[0] == (1, len(common) - 1) and max(width for _, width in widths[1:]) == 21
    assert generate(model, TOKENIZER, asked[:1] * 2, 9, 1.0, [5] * 2, share_prefix=True) == alone[:1] * 2


def test_an_answer_ends_where_its_caller_says():
    model = tiny_llama(seed=3)
    whole = generate(model, TOKENIZER, prompts(2), 9, temperature=1.0, seeds=[1, 2])
    cut = generate(model, TOKENIZER, prompts(2), 9, 1.0, [1, 2], ended=lambda answer: len(answer) == 4)
    assert cut == [answer[:4] for answer in whole]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_a_nucleus_found_among_the_top_tokens_is_that_of_the_whole_vocabulary(top_p, monkeypatch):
    monkeypatch.setattr("harness.models.generate.NUCLEUS_CANDIDATES", 8)
    generator = torch.Generator().manual_seed(0)
    peaked = torch.softmax(torch.randn(6, 50, generator=generator).round() * 2, -1).double()  # with many ties
    ordered, tokens = peaked.sort(dim=-1, descending=True, stable=True)
    inside = ordered.cumsum(-1) - ordered < top_p
    assert torch.equal(nucleus(peaked, top_p), torch.zeros_like(inside).scatter(-1, tokens, inside))
