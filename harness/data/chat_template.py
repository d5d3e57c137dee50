"""Chat templates as texts: what a template reads besides the conversation, and how that is fixed inside it.

Some templates have a switch that turns thinking on or off, and some print today's date. Both are fixed by lines put
before the template, so that every program that renders it, also from a saved model, gets the same prompt on every day.
Nothing here loads a tokenizer: plans and the checks before a run read templates from files (`models/files.py`).

    thinking_switch(template)                            # "enable_thinking", or None
    with_date(template, date(2024, 7, 26))               # strftime_now gives that day
"""

import functools
import importlib.util
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

DEFAULT_DATE = "2024-07-26"
"""Printed by templates that would print today's date: the day that Llama 3.1's template states, and that Llama 3.2's
states where the program that renders it has no clock."""
SWITCHES = ("enable_thinking", "thinking")
"""What templates call the switch that turns thinking on or off: Qwen 3 and most others, then DeepSeek V3.1, Granite."""
CLOCK, DATE = "strftime_now", "date_string"
"""The function that gives today's date in a format, and the variable that holds a date (Llama 3)."""
DATE_FORMAT = "%d %b %Y"
"""How `date_string` is written: 26 Jul 2024."""
DIRECTIVES = (*(f"%{letter}" for letter in "aAwdbBmyYHIMSpjUWGuVfzZcxXDFTRe"), "%-d", "%-m", "%-H", "%-I", "%-M")

PROBE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
"""A conversation that is rendered with thinking on and off."""


class _Generation(Extension):
    """Accepts the tag around an answer with which transformers marks the assistant's tokens."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=64)
def variables(template: str) -> frozenset[str]:
    """Names that a template reads and does not set itself; none of a template that cannot be parsed."""
    try:
        return frozenset(find_undeclared_variables(_environment().parse(template)))
    except TemplateSyntaxError:
        return frozenset()


@functools.lru_cache(maxsize=64)
def thinking_switch(template: str) -> str | None:
    """The name of the template's switch for thinking; None where it has none."""
    return next((name for name in SWITCHES if name in variables(template) and _switches(template, name)), None)


def prints_today(template: str) -> bool:
    """Whether the template prints the date of the day it is rendered on."""
    return CLOCK in variables(template)


def reads_date(template: str) -> bool:
    """Whether the template prints a date that can be set."""
    return bool({CLOCK, DATE} & variables(template))


def with_thinking(template: str, thinking: bool) -> str:
    """The template with its switch set; it must have one."""
    switch = thinking_switch(template)
    assert switch is not None, "a template without a switch is refused before"
    return _after(f"{{% set {switch} = {'true' if thinking else 'false'} %}}", template)


def with_date(template: str, day: date) -> str:
    """The template with every date it reads set to midnight of one day; unchanged where it reads none."""
    moment, found = datetime.combine(day, time()), variables(template)
    # of two directives the longer first: the parts of "%-d" are no directives
    pairs = [(directive, moment.strftime(directive)) for directive in sorted(DIRECTIVES, key=len, reverse=True)]
    chain = "".join(f"|replace('{directive}', '{value}')" for directive, value in pairs)
    # the name of the function is set in the template, where it stands for the program's own
    clock = f"{{% macro {CLOCK}(format) %}}{{{{ format{chain} }}}}{{% endmacro %}}"
    if CLOCK in found:
        template = _after(clock, template)
    if DATE in found:
        template = _after(f"{{% set {DATE} = '{moment.strftime(DATE_FORMAT)}' %}}", template)
    return template


def training_template(template: str) -> str | None:
    """The training template that the installed TRL has for a family's own template; None where it has none.

    Such a template renders earlier turns as it rendered them when they were last.
    """
    found = importlib.util.find_spec("trl")
    assert found is not None and found.submodule_search_locations, "trl is a dependency of this package"
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    for file in sorted(folder.glob("*_training.jinja")):
        training, own = file.read_text(encoding="utf-8"), file.with_name(file.name.replace("_training", ""))
        if template == training or (own.is_file() and own.read_text(encoding="utf-8") == template):
            return training
    return None


def rejects_system(template: str) -> bool:
    """Whether a template refuses a conversation with a system turn, as Gemma's does, and takes one without."""
    environment = _environment()
    environment.globals["raise_exception"] = _raise
    environment.globals[CLOCK] = datetime.now().strftime
    values = {"bos_token": "", "eos_token": "", "add_generation_prompt": False}
    refused = []
    for turns in (PROBE[:2], [{"role": "system", "content": "s"}, *PROBE[:2]]):
        try:
            environment.from_string(template).render(messages=turns, **values)
            refused.append(False)
        except TemplateError:
            refused.append(True)
        except TypeError:  # it needs what only the tokenizer has
            return False
    return refused == [False, True]


def rendering_problem(template: str, special_tokens: Mapping[str, str]) -> str | None:
    """Why a template cannot render a question and its answer, as a phrase; None where it can, as far as can be told."""
    environment, turns = _environment(), [{"role": "user", "content": "q7Q"}, {"role": "assistant", "content": "a7A"}]
    environment.globals["raise_exception"] = _raise
    environment.globals[CLOCK] = datetime.now().strftime
    values = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, **special_tokens}
    try:
        text = environment.from_string(template).render(messages=turns, add_generation_prompt=False, **values)
    except TemplateSyntaxError as error:
        return f"cannot be parsed (line {error.lineno}: {error.message})"
    except SecurityError as error:
        return f"reads what a template must not ({error})"
    except TemplateError as error:
        return f"rejects a question and an answer ({error})"
    except TypeError as error:
        if "no loader" in str(error):
            return "reads other files, which a template must not"
        return None  # it needs what only the tokenizer has
    except Exception as error:
        return f"fails on a question and an answer ({type(error).__name__}: {error})"
    lost = [role for role, mark in (("question", "q7Q"), ("answer", "a7A")) if mark not in text]
    return f"leaves out the {' and the '.join(lost)}" if lost else None


def _switches(template: str, name: str) -> bool:
    """Whether a conversation is rendered differently with the switch on and off: a name may have another use."""
    environment = _environment()
    environment.globals["raise_exception"] = _raise
    environment.globals[CLOCK] = datetime.now().strftime
    try:
        found = environment.from_string(template)
        values = {"messages": PROBE, "bos_token": "", "eos_token": "", "add_generation_prompt": True}
        on, off = (found.render(**values, **{name: value}) for value in (True, False))
    # a template may reject the probe or need what only the tokenizer has; then the name alone decides
    except (TemplateError, TypeError):
        return True
    return on != off


def _environment() -> ImmutableSandboxedEnvironment:
    """An environment like that of transformers."""
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _after(setting: str, template: str) -> str:
    # the empty expression keeps a line break at the template's beginning, which a block before it would take away
    return f"{setting}{{{{ '' }}}}{template}"
