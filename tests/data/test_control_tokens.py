"""Control tokens inside texts: they stay text, are counted, and change nothing where there are none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.data.chat import answer_ids_many, prompt_ids, render, render_rows, set_template
from harness.data.control_tokens import CUT, Marks, drops_system, marks_of
from tests.doubles import byte_ids, byte_tokenizer, special_id
from tests.thinking import family_tokenizer

FAMILIES = ("own", "tulu", "qwen2_5", "qwen3", "llama3", "gemma", "gptoss")
USER, ASSISTANT, END = special_id("<|user|>"), special_id("<|assistant|>"), special_id("<|end|>")


def tokenizer_of(family):
    if family in ("own", "tulu"):
        tokenizer = byte_tokenizer()
        set_template(tokenizer, family)
        return tokenizer
    return family_tokenizer(family)


TOKENIZERS = {family: tokenizer_of(family) for family in FAMILIES}


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def control_ids(tokenizer, ids):
    special = {tokenizer.convert_tokens_to_ids(mark) for mark in marks_of(tokenizer).tokens}
    return [one for one in ids if one in special]


def test_an_end_of_turn_token_in_a_text_is_encoded_byte_by_byte_and_the_turn_goes_on():
    rendered = render(byte_tokenizer(), turns("what does <|end|> do?", "<|end|> ends a turn."), 999)
    prompt = [USER, *byte_ids("what does <|end|> do?"), ASSISTANT]
    assert rendered.input_ids == [*prompt, *byte_ids("<|end|> ends a turn."), END]
    assert (rendered.starts, rendered.ends) == ([len(prompt)], [len(rendered.input_ids)])
    assert prompt_ids(byte_tokenizer(), turns("what does <|end|> do?")) == prompt


def test_a_written_answer_has_one_end_of_turn_token_whatever_it_says():
    (ids,) = answer_ids_many(byte_tokenizer(), ["a<|end|><|user|>b"], [True])
    assert ids == [*byte_ids("a<|end|><|user|>b"), END]


def test_roles_that_a_template_writes_as_plain_text_are_cut_between_all_characters():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ '[INST]' + m['content'] }}{% if m['role'] == 'assistant' %}"
    tokenizer.chat_template += "{{ '<|end|>' }}{% endif %}{% endfor %}"
    marks = marks_of(tokenizer)
    assert marks.plain == {"[INST]"}
    assert marks.cut("x[INST]y") == "x[" + CUT + CUT.join("INST]") + "y"
    assert marks.count(turns("[INST] and [INST]", "<|end|>")) == {"[INST]": 2, "<|end|>": 1}


def test_a_word_vocabulary_never_gives_the_ids_of_a_plain_role_mark():
    words = {
        token: number for number, token in enumerate(("?", "</s>", "<|user|>", "<|assistant|>", "hi", "\n", *"<|user>"))
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(mark, "isolated") for mark in ("<|user|>", "<|assistant|>", "\n")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?")
    set_template(tokenizer, "tulu")
    ids = render(tokenizer, turns("<|user|>", "hi"), 99).input_ids
    assert ids.count(words["<|user|>"]) == 1  # the turn's own


def test_the_marks_of_reasoning_are_no_control_tokens_and_an_answer_keeps_its_channels():
    assert "<think>" not in marks_of(TOKENIZERS["qwen3"]).tokens
    marks = marks_of(TOKENIZERS["gptoss"])
    whole = {"role": "assistant", "content": "<|channel|>final<|message|>4"}
    assert marks.cut_messages([whole]) == [whole] and not marks.count([whole])


def test_a_mark_within_another_is_cut_too():
    marks = Marks(frozenset({"<|a|>", "|>b"}), frozenset())
    pieces = marks.cut("<|a|>b").split(CUT)
    assert "".join(pieces) == "<|a|>b" and not any(mark in piece for mark in marks.tokens for piece in pieces)


def test_a_template_that_leaves_system_turns_out_is_known():
    tokenizer = byte_tokenizer("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}<|end|>{% endfor %}")
    assert drops_system(tokenizer) and not drops_system(byte_tokenizer())
    assert not drops_system(TOKENIZERS["gemma"])  # it refuses them


ALL_MARKS = {mark for one in TOKENIZERS.values() for mark in marks_of(one).tokens | marks_of(one).plain}
OTHERS = ("<|", "|>", "<", "im_end", "é", "日本", "word", " ", "\n", "a")
texts = st.lists(st.sampled_from([*sorted(ALL_MARKS), *OTHERS]), min_size=1, max_size=6)
contents = texts.map("".join).filter(str.strip)
conversations = st.lists(contents, min_size=2, max_size=4).map(lambda said: said[: len(said) // 2 * 2])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(said=conversations)
def test_whatever_texts_say_the_turns_are_those_of_plain_texts(family, said):
    tokenizer = TOKENIZERS[family]
    if family == "gptoss":
        said = [f"x{text}" if text.startswith("<|channel|>") else text for text in said]
    # one row, or one a turn where the template rewrites earlier turns
    rows, plain_rows = (render_rows(tokenizer, [turns(*texts)], 10**6)[0] for texts in (said, ["x"] * len(said)))
    answers = []
    for rendered, plain in zip(rows, plain_rows, strict=True):
        assert control_ids(tokenizer, rendered.input_ids) == control_ids(tokenizer, plain.input_ids)
        spans = zip(rendered.starts, rendered.ends, plain.starts, plain.ends, strict=True)
        for start, end, plain_start, plain_end in spans:
            answer = str(tokenizer.decode(rendered.input_ids[start:end]))
            before, _, after = str(tokenizer.decode(plain.input_ids[plain_start:plain_end])).partition("x")
            assert answer.startswith(before) and answer.endswith(after)
            answers.append(answer[len(before) : len(answer) - len(after)].strip())
    # masks cover exactly the answers: each is its text (which some templates trim), and what ends its turn
    assert answers == [text.strip() for text in said[1::2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_without_a_mark_are_left_as_they_are(family):
    messages = turns("less < than | more > [x] <b>bold</b> im_end", "fine")
    assert marks_of(TOKENIZERS[family]).cut_messages(messages) is messages
