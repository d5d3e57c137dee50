"""Chat templates: switches for thinking, dates, and TRL's training templates, from their text alone."""

from datetime import date, datetime

import pytest
from trl.chat_template_utils import get_training_chat_template

from harness.config.checks import SettingsError
from harness.data.chat import fix_template, set_template
from harness.data.chat_template import prints_today, reads_date, thinking_switch, training_template, with_date
from tests.doubles import byte_tokenizer
from tests.thinking import TEMPLATES, chat, family_tokenizer, template_of


@pytest.fixture
def another_day(monkeypatch):
    """Every template is rendered on the last day of 2031."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 31, 23, 59)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def prompt(tokenizer) -> str:
    return tokenizer.apply_chat_template(chat("q"), tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("family", "switch", "today", "dated"),
    [
        ("qwen2_5", None, False, False),
        ("qwen3", "enable_thinking", False, False),
        ("qwen3_5_think", "enable_thinking", False, False),
        ("deepseek_r1_distill", None, False, False),
        ("deepseek_v31", "thinking", False, False),
        ("smollm3", "enable_thinking", True, True),
        ("lfm2_2_5_v2", None, False, False),  # a name of its own that only looks like a switch
        ("llama3_1", None, False, True),
        ("llama3_2", None, True, True),
        ("gptoss", None, True, True),
    ],
)
def test_a_template_tells_its_switch_and_its_date(family, switch, today, dated):
    template = template_of(family)
    found = thinking_switch(template), prints_today(template), reads_date(template)
    assert found == (switch, today, dated)


@pytest.mark.parametrize(
    ("family", "default", "named"),
    [
        ("llama3_1", "Today Date: 26 Jul 2024", "Today Date: 03 Feb 2025"),
        ("llama3_2", "Today Date: 26 Jul 2024", "Today Date: 03 Feb 2025"),
        ("smollm3", "Today Date: 26 July 2024", "Today Date: 03 February 2025"),
        ("gptoss", "Current date: 2024-07-26", "Current date: 2025-02-03"),
    ],
)
def test_a_template_prints_one_date_on_every_day(family, default, named, another_day):
    dated = family_tokenizer(family)
    if family != "llama3_1":  # the clock is read without the fix
        assert "2031" in prompt(dated)
    fix_template(dated)
    assert default in prompt(dated) and "2031" not in prompt(dated)
    once = dated.chat_template
    fix_template(dated)
    assert dated.chat_template == once
    other = family_tokenizer(family)
    fix_template(other, template_date="2025-02-03")
    assert named in prompt(other)


def test_a_fixed_date_changes_nothing_else_of_a_prompt(another_day):
    today = family_tokenizer("llama3_2")
    fixed = family_tokenizer("llama3_2")
    fix_template(fixed, template_date="2031-12-31")
    assert prompt(fixed) == prompt(today)
    template = "\n{{ strftime_now('%A %-d %b %y, %H:%M') }}"
    tokenizer = byte_tokenizer(with_date(template, date(2025, 2, 3)))
    assert tokenizer.apply_chat_template(chat("q"), tokenize=False) == "\nMonday 3 Feb 25, 00:00"


def test_a_template_without_a_date_or_a_switch_is_left_alone_and_refuses_to_be_set():
    tokenizer = family_tokenizer("qwen2_5")
    before = tokenizer.chat_template
    fix_template(tokenizer)
    assert tokenizer.chat_template == before
    with pytest.raises(SettingsError, match=r"thinking='true'.*no switch for thinking"):
        fix_template(tokenizer, thinking=True)
    with pytest.raises(SettingsError, match=r"template_date='2025-02-03'.*reads no date"):
        fix_template(tokenizer, template_date="2025-02-03")


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_think", "smollm3", "deepseek_v31"])
def test_thinking_is_on_or_off_in_every_prompt_of_a_saved_tokenizer(family, tmp_path):
    prompts = {}
    for thinking in (None, True, False):
        tokenizer = family_tokenizer(family)
        fix_template(tokenizer, thinking)
        tokenizer.save_pretrained(tmp_path / str(thinking))
        prompts[thinking] = prompt(type(tokenizer).from_pretrained(tmp_path / str(thinking)))
    assert prompts[True] != prompts[False]
    assert prompts[False].rstrip().endswith("</think>") and not prompts[True].rstrip().endswith("</think>")
    assert prompts[None] == prompts[family != "deepseek_v31"]


def test_the_training_template_is_the_one_that_trl_gives():
    tokenizer = byte_tokenizer()
    found = 0
    for file in sorted(TEMPLATES.glob("*.jinja")):
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        try:
            expected = get_training_chat_template(tokenizer) or training_template(tokenizer.chat_template)
        except ValueError:
            expected = None
        assert training_template(tokenizer.chat_template) == expected, file.name
        found += expected is not None
    assert found > 20


def test_a_template_for_which_trl_has_none_is_refused():
    with pytest.raises(SettingsError, match=r"chat_template='trl'.*TRL has no training template"):
        set_template(family_tokenizer("llama3_2"), "trl")
