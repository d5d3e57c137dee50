"""Reasoning and answer: what is removed, what is left, and what leaves no answer."""

import pytest

from harness.data.reasoning import answer_of, decoded_answer, opened_by, prompt_end
from tests.thinking import family_tokenizer

R1, QWEN = "<｜Assistant｜><think>\n", "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("text", "prompt", "answer"),
    [
        ("42", QWEN, "42"),
        ("  42\n", QWEN, "  42\n"),  # a text without marks is left as it is
        ("<think>\n12 + 30\n</think>\n\n42", QWEN, "42"),
        ("\n <think></think>42", QWEN, "42"),
        ("<think>\n\n</think>\n\n<think>12 + 30</think>42", QWEN, "42"),
        ("12 + 30\n</think>\n\n42", QWEN, "42"),  # its prompt began the reasoning and is not known
        ("12 + 30\n</think>\n\n42", R1, "42"),
        ("\n</think>\n\n42", R1, "42"),
        ("<think>\n12 + 30\n</think>\n\n42", R1, "42"),  # the model begins it once more
        ("12 + 30 is 4", R1, None),
        ("<think>12 + 30 is 4", QWEN, None),
        ("<think>a</think><think>b", QWEN, None),
        ("", R1, None),
        ("", QWEN, ""),
        ("<think>a</think>The mark </think> ends it", QWEN, "The mark </think> ends it"),
        ("a</think>The mark </think> ends it", R1, "The mark </think> ends it"),
        ("Write <think> and </think> around it", QWEN, "Write <think> and </think> around it"),
        ("<think>a</think> 42", QWEN, "42"),
        ("<think>a</think>\n\n    return 42\n", QWEN, "    return 42\n"),  # a line of code keeps its indentation
        ("print('<think>')", QWEN, "print('<think>')"),
        ("[THINK]a[/THINK]42", "[/INST]", "42"),
        ("<thought>\na\n</thought>\n\n42", "", "42"),
        ("<seed:think>a</seed:think>42", "", "42"),
        ("a◁/think▷42", "◁think▷", "42"),
        ("<|START_THINKING|>a<|END_THINKING|>42", "", "42"),
        ("<|channel>thought\na<channel|>42", "<|turn>model\n", "42"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>42", "", "42"),
        ("<|channel|>final<|message|>42<|return|>", "", "42"),
        ("<|channel|>analysis<|message|>12 + 30 is", "", None),
    ],
)
def test_the_answer_is_what_follows_the_reasoning(text, prompt, answer):
    assert answer_of(text, prompt) == answer


def test_a_prompt_begins_reasoning_where_it_ends_in_a_mark():
    assert opened_by(R1) == "<think>" and opened_by("[THINK] ") == "[THINK]"
    assert opened_by(QWEN) is None and opened_by(QWEN + "<think>\n\n</think>\n\n") is None


def test_marks_that_are_special_tokens_are_seen_and_no_special_token_is_left():
    tokenizer = family_tokenizer("qwen3")
    ids = tokenizer("[THINK]hm[/THINK]<|im_start|>42", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hm42"
    assert decoded_answer(tokenizer, ids, "") == "42"
    assert decoded_answer(tokenizer, ids[:3], "") is None
    prompt = tokenizer(R1, add_special_tokens=False)["input_ids"]
    assert opened_by(prompt_end(tokenizer, prompt)) == "<think>"
    assert decoded_answer(tokenizer, tokenizer("hm</think>42")["input_ids"], prompt_end(tokenizer, prompt)) == "42"
