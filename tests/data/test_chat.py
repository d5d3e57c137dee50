"""Chat rendering, token by token: what is trained, what is not, and what is refused."""

import time

import pytest

from harness.config.checks import SettingsError
from harness.data.chat import (
    TULU_TEMPLATE,
    answer_ids_many,
    end_of_turn_id,
    fix_template,
    prompt_ids,
    prompt_ids_many,
    render,
    render_many,
    render_prompts,
    render_rows,
    set_template,
)
from tests.doubles import byte_ids, byte_tokenizer, special_id
from tests.thinking import chat, family_tokenizer

USER, ASSISTANT, END = special_id("<|user|>"), special_id("<|assistant|>"), special_id("<|end|>")

CHATML = (  # as SmolLM2's: a default system prompt, a line break after every end-of-turn token
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|system|>Be kind.<|end|>\n' }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def trained(rendered) -> list[list[int]]:
    return [rendered.input_ids[a:b] for a, b in zip(rendered.starts, rendered.ends, strict=True)]


def test_a_single_turn_is_rendered_token_by_token():
    rendered = render(byte_tokenizer(), turns("hi", "yo"), 64)
    assert rendered.input_ids == [USER, *byte_ids("hi"), ASSISTANT, *byte_ids("yo"), END]
    assert (rendered.starts, rendered.ends, rendered.truncated) == ([4], [7], False)
    assert rendered.response_tokens == 3


def test_every_assistant_turn_and_its_end_of_turn_token_are_trained_and_nothing_else():
    rendered = render(byte_tokenizer(CHATML), turns("a", "bc", "d", "e"), 256)
    assert trained(rendered) == [[*byte_ids("bc"), END], [*byte_ids("e"), END]]
    # the line break after the first end-of-turn token is context, the one after the last is left out
    assert rendered.input_ids[rendered.ends[0]] == byte_ids("\n")[0]
    assert rendered.input_ids[-1] == END and rendered.ends[-1] == len(rendered.input_ids)


def test_the_tulu_template_writes_what_open_instruct_documents():
    tokenizer = byte_tokenizer(None)
    set_template(tokenizer, "tulu")
    messages = [{"role": "system", "content": "S"}, *turns("q", "a", "r", "b")]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|system|>\nS\n<|user|>\nq\n<|assistant|>\na<|end|>\n<|user|>\nr\n<|assistant|>\nb<|end|>"
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|user|>\nr\n<|assistant|>\n")
    assert trained(render(tokenizer, messages, 256)) == [[*byte_ids("a"), END], [*byte_ids("b"), END]]


@pytest.mark.parametrize("template", [None, CHATML, TULU_TEMPLATE])
@pytest.mark.parametrize(
    "texts", [("q", "a"), ("q", "\n a"), ("", ""), ("q", "é\n\n", "r ", "  b"), ("q", "日本", "r", "")]
)
def test_the_prompt_is_the_prefix_of_the_whole_rendering(template, texts):
    tokenizer = byte_tokenizer(template) if template else byte_tokenizer()
    messages = turns(*texts)
    rendered = render(tokenizer, messages, 512)
    assert prompt_ids(tokenizer, messages[:-1]) == rendered.input_ids[: rendered.starts[-1]]


@pytest.mark.parametrize("template", [None, CHATML, TULU_TEMPLATE])
def test_a_prompt_alone_is_what_generation_sees_with_a_place_for_the_answer(template):
    tokenizer = byte_tokenizer(template) if template else byte_tokenizer()
    prompts = [turns("q"), turns("q", "a", "longer"), [{"role": "system", "content": "S"}, *turns("x")]]
    for messages, rendered in zip(prompts, render_prompts(tokenizer, prompts, 256), strict=True):
        assert rendered.input_ids == prompt_ids(tokenizer, messages)
        assert (
            rendered.input_ids
            == render(tokenizer, [*messages, *turns("", "answer")[1:]], 256).input_ids[: len(rendered.input_ids)]
        )
        assert rendered.starts == rendered.ends == [len(rendered.input_ids)] and not rendered.truncated
        assert rendered.response_tokens == 0


def test_a_prompt_that_leaves_no_room_for_an_answer_has_no_place_for_one():
    fits, full = (render_prompts(byte_tokenizer(), [turns("hi")], length)[0] for length in (5, 4))
    assert (len(fits.input_ids), fits.starts, fits.truncated) == (4, [4], False)
    assert (full.starts, full.ends, full.truncated) == ([], [], True)


def test_a_default_system_prompt_is_the_same_in_prompt_and_whole_rendering():
    tokenizer = byte_tokenizer(CHATML)
    begin = [special_id("<|system|>"), *byte_ids("Be kind."), END]
    assert render(tokenizer, turns("q", "a"), 99).input_ids[: len(begin)] == begin
    assert prompt_ids(tokenizer, turns("q"))[: len(begin)] == begin


def test_merges_across_the_prompt_s_end_cannot_make_prompt_and_training_differ():
    # A tokenizer that knows "\n\n" as one token: "<|assistant|>\n" + "\nhi" must still begin with the prompt.
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: i
        for i, token in enumerate(["<|end|>", "\n", "\n\n", "h", "i", "<", "|", ">", "u", "s", "e", "r", "a", "t", "n"])
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[("\n", "\n")])), eos_token="<|end|>"
    )
    tokenizer.chat_template = TULU_TEMPLATE
    rendered = render(tokenizer, turns("hi", "\nhi"), 99)
    prompt = prompt_ids(tokenizer, turns("hi"))
    assert prompt[-1] == 1  # one line break, as generation will see it
    assert rendered.input_ids == [*prompt, 1, 3, 4, 0]


def test_a_tokenizer_that_prepends_a_space_does_so_only_at_the_beginning():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"<|end|>": 0, "▁": 1, "q": 2, "a": 3, "?": 4, "\n": 5}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ '<|end|>' if m['role'] == 'assistant' else '?' }}{% endfor %}"
    )
    assert render(tokenizer, turns("q", "a", "q", "a"), 99).input_ids == [1, 2, 4, 3, 0, 2, 4, 3, 0]


def test_truncation_cuts_spans_and_is_flagged():
    tokenizer = byte_tokenizer()
    messages = turns("hi", "yo", "q", "abc")  # 1+2+1+2+1 tokens, then 1+1+1+3+1
    whole = render(tokenizer, messages, 14)
    assert not whole.truncated and whole.ends == [7, 14]
    inside = render(tokenizer, messages, 12)
    assert inside.truncated and (inside.starts, inside.ends) == ([4, 10], [7, 12])
    assert len(inside.input_ids) == 12
    gone = render(tokenizer, messages, 10)
    assert gone.truncated and (gone.starts, gone.ends) == ([4], [7])
    nothing = render(tokenizer, messages, 4)
    assert nothing.truncated and nothing.starts == [] and nothing.response_tokens == 0


def test_padding_equal_to_end_of_turn_changes_no_span():
    assert render(byte_tokenizer(pad_is_end=True), turns("q", "a"), 9) == render(byte_tokenizer(), turns("q", "a"), 9)


def test_a_beginning_of_sequence_token_is_never_doubled():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer("{{ bos_token }}" + byte_tokenizer().chat_template)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    assert tokenizer("x")["input_ids"][0] == 1  # the tokenizer itself would add one more
    for ids in (
        render(tokenizer, turns("q", "a", "r", "b"), 99).input_ids,
        prompt_ids(tokenizer, turns("q")),
    ):
        assert ids[0] == special_id("<bos>") and ids.count(special_id("<bos>")) == 1


def test_the_end_of_turn_token_comes_from_the_template_not_from_eos():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<bos>"
    assert end_of_turn_id(tokenizer) == END


def test_many_and_one_agree():
    tokenizer = byte_tokenizer(CHATML)
    rows = [turns("a", "b"), turns("c", "d", "e", "f"), turns("gg", "hhh")]
    assert render_many(tokenizer, rows, 40) == [render(tokenizer, row, 40) for row in rows]
    prompts = [row[:-1] for row in rows]
    assert prompt_ids_many(tokenizer, prompts) == [prompt_ids(tokenizer, prompt) for prompt in prompts]
    assert render_many(tokenizer, [], 40) == [] == prompt_ids_many(tokenizer, [])


REWRITES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if loop.last or m['role'] != 'assistant' %}"
    "{{ m['content'] }}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", "no end-of-turn token"),
        (REWRITES, "rewrites earlier turns"),
        (
            "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML,
            "one turn only",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused_with_a_way_out(template, said):
    with pytest.raises(SettingsError, match=said) as refusal:
        render(byte_tokenizer(template), turns("q", "a", "r", "b"), 99)
    assert "chat_template=tulu" in str(refusal.value)
    assert str(refusal.value).count(". ") == 0


def test_tulu_without_an_end_of_sequence_token_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(SettingsError, match="end-of-sequence"):
        set_template(tokenizer, "tulu")


def test_sixteen_thousand_short_rows_are_rendered_in_one_batch():
    rows = [turns(f"Add {i} and 8.", "45") for i in range(16_000)]
    began = time.perf_counter()
    rendered = render_many(byte_tokenizer(), rows, 64)
    print(f"{time.perf_counter() - began:.2f} s")  # about 2 s on one core; no assertion on wall time
    assert len(rendered) == 16_000 and trained(rendered[-1]) == [[*byte_ids("45"), END]]


def answers_of(tokenizer, rows):
    """What each row trains, as text."""
    return [[tokenizer.decode(ids) for ids in trained(row)] for row in rows]


PLAIN = ("q", "a", "r", "b")
REASONED = ("q", "<think>\nhm\n</think>\n\na", "r", "<think>\nso\n</think>\n\nb")
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("family", "thinking", "plain", "reasoned"),
    [
        ("qwen3", None, (f"{EMPTY}a", f"{EMPTY}b"), (REASONED[1], REASONED[3])),
        ("qwen3", False, ("a", "b"), ("a", "b")),
        ("qwen3_5_think", None, ("\n</think>\n\na", "\n</think>\n\nb"), ("hm\n</think>\n\na", "so\n</think>\n\nb")),
        ("qwen3_5_think", False, ("a", "b"), ("a", "b")),
        # the template writes no answer after the mark that its generation prompt ends with
        (
            "deepseek_r1_distill",
            None,
            ("\n</think>\n\na", "\n</think>\n\nb"),
            ("hm\n</think>\n\na", "so\n</think>\n\nb"),
        ),
    ],
)
def test_a_conversation_whose_earlier_turns_are_rewritten_is_one_row_a_turn(family, thinking, plain, reasoned):
    tokenizer = family_tokenizer(family)
    fix_template(tokenizer, thinking)
    end = tokenizer.decode([end_of_turn_id(tokenizer)])
    for texts, expected in ((PLAIN, plain), (REASONED, reasoned)):
        conversation = chat(*texts)
        rows = render_rows(tokenizer, [conversation], 500)[0]
        assert answers_of(tokenizer, rows) == [[answer + end] for answer in expected]
        for row, turn in zip(rows, (1, 3), strict=True):
            # as at inference: rendered by the template itself, and by the code that generates
            asked = tokenizer.apply_chat_template(conversation[:turn], tokenize=False, add_generation_prompt=True)
            assert tokenizer.decode(row.input_ids[: row.starts[0]]) == asked
            assert row.input_ids[: row.starts[0]] == prompt_ids(tokenizer, conversation[:turn])
        with pytest.raises(SettingsError, match="rewrites earlier turns"):
            render_many(tokenizer, [conversation], 500)
        # a single turn is one row for both
        assert render_many(tokenizer, [conversation[:2]], 500) == rows[:1]


@pytest.mark.parametrize(
    ("family", "thinking", "answers"),
    [
        ("smollm3", None, ("a", "b")),
        ("smollm3", False, ("a", "b")),
        ("deepseek_v31", None, ("a", "b")),
        ("deepseek_v31", True, ("</think>a", "</think>b")),
        ("llama3_2", None, ("a", "b")),
    ],
)
def test_other_turns_and_switches_are_rendered_as_they_are_at_inference(family, thinking, answers):
    tokenizer = family_tokenizer(family)
    fix_template(tokenizer, thinking)
    end = tokenizer.decode([end_of_turn_id(tokenizer)])
    rows = render_rows(tokenizer, [chat(*PLAIN)], 500)[0]
    # DeepSeek's prompt opens what the answered turn closes, so with thinking its turns are rows
    assert [one for row in answers_of(tokenizer, rows) for one in row] == [answer + end for answer in answers]
    assert len(rows) == (2 if thinking else 1)


def test_rows_of_a_conversation_are_cut_and_dropped_one_by_one():
    tokenizer = family_tokenizer("qwen3")
    whole = render_rows(tokenizer, [chat(*PLAIN)], 500)[0]
    limit = len(whole[1].input_ids) - 3
    cut = render_rows(tokenizer, [chat(*PLAIN)], limit)[0]
    assert not cut[0].truncated and cut[1].truncated and cut[1].ends == [limit]
    assert render_rows(tokenizer, [chat(*PLAIN)], len(whole[0].input_ids))[0][1].starts == []


def test_a_conversation_without_rewritten_turns_is_the_row_it_was():
    tokenizer = byte_tokenizer()
    conversations = [chat("a", "bc", "d", "e"), chat("q", "a")]
    assert render_rows(tokenizer, conversations, 64) == [[row] for row in render_many(tokenizer, conversations, 64)]


def test_trls_training_template_keeps_a_conversation_in_one_row():
    tokenizer = family_tokenizer("qwen3")
    set_template(tokenizer, "trl")
    (row,) = render_rows(tokenizer, [chat(*REASONED)], 500)[0]
    assert answers_of(tokenizer, [row]) == [[f"{REASONED[1]}<|im_end|>", f"{REASONED[3]}<|im_end|>"]]


@pytest.mark.parametrize(
    ("family", "text", "finished", "expected"),
    [
        ("qwen2_5", "a", True, "a<|im_end|>"),
        ("qwen3", "a", True, "a<|im_end|>"),
        ("qwen3_5_think", "a", True, "\n</think>\n\na<|im_end|>"),  # as `render` writes an answer without reasoning
        ("qwen3_5_think", "<think>\nhm\n</think>\n\na", True, "hm\n</think>\n\na<|im_end|>"),
        ("qwen3_5_think", "hm\n</think>\n\na", True, "hm\n</think>\n\na<|im_end|>"),
        ("qwen3_5_think", "<think>\nhm", False, "hm"),
        ("qwen3_5_think", "", False, ""),
        ("gptoss", "a", True, "<|channel|>final<|message|>a<|return|>"),
        ("gptoss", "<|channel|>final<|message|>a", True, "<|channel|>final<|message|>a<|return|>"),
    ],
)
def test_an_answer_follows_what_the_generation_prompt_began(family, text, finished, expected):
    tokenizer = family_tokenizer(family)
    assert tokenizer.decode(answer_ids_many(tokenizer, [text], [finished])[0]) == expected
