"""Interleaved text against a loop that reads everything anew for each token, and in the limits that are known."""

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from harness.config.recipe import TrainingPhase
from harness.data.sequences import draw_seed
from harness.models.generate import generate
from harness.models.speculative import generate_speculatively, in_top_k
from tests.doubles import byte_tokenizer, tiny_llama

TOKENIZER = byte_tokenizer()
LIMIT = 12
STOPS = set(range(0, 262, 23))  # random models end a turn in one of 262 draws; these stop in one of 23


def prompts(count=6):
    generator = np.random.default_rng(0)
    return [generator.integers(6, 262, int(size)).tolist() for size in generator.integers(2, 12, count)]


def stage(**values):
    asked = {"accepted_top_k": 60, "sampling_temperature": 1.0, "teacher_temperature": 0.7, "teacher_top_p": 0.8}
    return TrainingPhase(sequences="interleaved", divergence="forward_kl", **asked | values)


def write(which=None, student=None, teacher=None, texts=None, seeds=None, limit=LIMIT, **more):
    texts = prompts() if texts is None else texts
    return generate_speculatively(
        student or tiny_llama(),
        teacher or tiny_llama(seed=1),
        TOKENIZER,
        texts,
        limit,
        which or stage(),
        list(range(len(texts))) if seeds is None else seeds,
        **({"stop_ids": STOPS} | more),
    )


def drawn(logits, temperature, top_p, uniform):
    """One token by the definition of a nucleus, in plain loops."""
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    nucleus, held = [], 0.0
    for token in sorted(range(len(p)), key=lambda t: (-p[t], t)):
        nucleus.append(token)
        held += p[token]
        if held >= top_p:
            break
    passed = 0.0
    for token in sorted(nucleus):
        passed += p[token] / held
        if uniform < passed:
            return token
    return max(nucleus)


def by_hand(which, prompt, seed, student, teacher):
    """Algorithm 1 without caches: one token at a time, each model reading the whole text every time."""
    own = np.random.default_rng(seed).random(LIMIT)
    others = np.random.default_rng(draw_seed(seed, "teacher")).random(LIMIT)
    answer, replaced = [], 0
    while len(answer) < LIMIT and not (answer and answer[-1] in STOPS):
        ids, place = torch.tensor([prompt + answer]), len(answer)
        with torch.no_grad():
            q, p = (model(input_ids=ids).logits[0, -1].double().numpy() for model in (student, teacher))
        token = drawn(q, which.sampling_temperature, which.sampling_top_p, own[place])
        if token not in np.argsort(-p, kind="stable")[: which.accepted_top_k]:
            token = drawn(p, which.teacher_temperature, which.teacher_top_p, others[place])
            replaced += 1
        answer.append(token)
    return answer, replaced


@pytest.mark.parametrize("proposed", [1, 3, 5])
def test_the_text_is_that_of_the_algorithm_written_out_whatever_is_proposed_at_a_time(proposed):
    which, student, teacher = stage(proposed_tokens=proposed, sampling_top_p=0.9), tiny_llama(), tiny_llama(seed=1)
    found = write(which, student, teacher)
    expected = [by_hand(which, p, s, student, teacher) for s, p in enumerate(prompts())]
    assert found.answers == [answer for answer, _ in expected]
    assert found.replaced == sum(replaced for _, replaced in expected) > 6
    assert len({len(answer) for answer in found.answers}) > 2


def test_a_teacher_that_accepts_every_token_leaves_the_students_own_text():
    which = stage(accepted_top_k=262, sampling_top_p=0.7)
    found = write(which)
    own = generate(tiny_llama(), TOKENIZER, prompts(), LIMIT, 1.0, list(range(6)), stop_ids=STOPS, top_p=0.7)
    assert found.answers == own
    assert found.replaced == 0 and found.proposed == sum(map(len, own))
    assert write(stage(accepted_top_k=60, sampling_top_p=0.7)).answers != own


def test_a_greedy_teacher_that_accepts_its_first_choice_alone_writes_its_own_greedy_text():
    found = write(stage(accepted_top_k=1, teacher_temperature=0.0))
    assert found.answers == generate(tiny_llama(seed=1), TOKENIZER, prompts(), LIMIT, stop_ids=STOPS)
    assert found.replaced >= 0.9 * sum(map(len, found.answers))


def test_a_rows_text_depends_on_its_seed_and_not_on_the_batch():
    together, seeds = write().answers, range(6)
    assert [write(texts=[p], seeds=[s]).answers[0] for p, s in zip(prompts(), seeds, strict=True)] == together
    assert write(batch_size=4).answers == together
    assert write(seeds=[s + 1 for s in seeds]).answers != together


def test_a_proposed_end_of_turn_is_judged_like_any_other_token():
    student, teacher = tiny_llama(), tiny_llama(seed=1)
    ends = generate(student, TOKENIZER, prompts(1), 1)[0]  # the student would stop at once
    alone = {"texts": prompts(1), "stop_ids": ends, "student": student, "teacher": teacher}
    accepted = write(stage(accepted_top_k=262, sampling_temperature=0.0), **alone)
    assert accepted.answers == [ends] and accepted.proposed == 1
    rejected = write(stage(accepted_top_k=1, sampling_temperature=0.0, teacher_temperature=0.0), **alone)
    assert rejected.answers[0][0] != ends[0] and len(rejected.answers[0]) > 1


def test_tokens_are_counted_as_a_row_by_itself_would_need_them():
    # every proposal is rejected: of 5 proposals one place is gained, until fewer places than 5 are left
    student, teacher = tiny_llama(seed=2), tiny_llama(seed=1)
    found = write(stage(accepted_top_k=1, teacher_temperature=0.0), student, teacher, prompts(1), [0], stop_ids={999})
    assert found.replaced == LIMIT and found.proposed == 5 * (LIMIT - 4) + 4 + 3 + 2 + 1
    accepted = write(stage(accepted_top_k=262), student, teacher, stop_ids={999})
    assert accepted.proposed == sum(map(len, accepted.answers)) == 6 * LIMIT


def test_text_never_runs_past_the_shorter_context_and_may_be_empty():
    student, teacher = tiny_llama(), tiny_llama(seed=1)
    teacher.config.max_position_embeddings = 10
    found = write(stage(), student, teacher, [[7] * 4, [7] * 8, [7] * 12], limit=5, stop_ids={261})
    assert [len(answer) for answer in found.answers] == [5, 2, 0]


def windowed(seed):
    """A random Mistral that attends to the last 4 tokens alone."""
    config = MistralConfig(
        vocab_size=262,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MistralForCausalLM(config).eval()


def test_a_sliding_window_counts_no_discarded_token():
    which, student, teacher, rows = stage(sampling_top_p=0.9), windowed(0), windowed(1), range(3)
    found = write(which, student, teacher, prompts(3))
    assert found.answers == [by_hand(which, prompts(3)[row], row, student, teacher)[0] for row in rows]


def test_ids_beyond_the_vocabulary_are_never_written():
    student, teacher = tiny_llama(300), tiny_llama(280, seed=1)
    found = write(stage(sampling_temperature=5.0, teacher_temperature=5.0, teacher_top_p=1.0), student, teacher)
    assert max(map(max, found.answers)) < 262


def test_the_top_k_are_exactly_k_also_where_logits_tie():
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0]]).expand(5, -1)
    found = [in_top_k(logits, torch.arange(5), k).tolist() for k in (1, 2, 3, 5)]
    assert found == [
        [False, True, False, False, False],
        [False, True, True, False, False],
        [False, True, True, True, False],
        [True] * 5,
    ]
