r"""Final answers of mathematics: GSM8K's number after `####` and MATH's boxed expression, found in an answer.

`evals/corpus/verified.py` compares final numbers; `evals/benchmarks/math.py` compares expressions. The number is
compared as a number: `#### $1,234.00` is 1234. An expression gets two grades, and None means that nothing was
found, which counts as wrong:

    strict      the last `\boxed{...}`, or the expression of Minerva's `The final answer is $...$`
    flexible    whatever math-verify finds: a box, a stated answer, the last formula
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Any

FINAL_NUMBER = re.compile(r"####\s*\$?\s*(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))")
MINERVA = re.compile(r"[Tt]he final answer is:?\s*(.+?)(?:\. I hope it is correct|\.?\s*$)", re.MULTILINE)
LIMIT_SECONDS = 5  # for each expression read and each pair compared


@dataclass(frozen=True)
class Grades:
    """An answer's two grades; None where no answer of that form was found, which counts as wrong."""

    strict: bool | None
    flexible: bool | None
    timed_out: bool = False
    """A comparison took more than five seconds, was given up and counts as wrong."""


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, commas and dollar sign dropped; None where there is none."""
    found = FINAL_NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def grade_math(answer: str, truth: str) -> Grades:
    """Compare a boxed or otherwise found expression with the truth: a solution with a box, or the bare expression.

    Equality is math-verify's (numbers, expressions, sets, intervals, matrices, equations). It limits its time by a
    signal, so this must run in the main thread (asserted).
    """
    assert threading.current_thread() is threading.main_thread(), "math-verify needs the main thread"
    boxed = last_boxed(truth)
    # in a box, so that math-verify reads the whole expression and not its last formula
    right = _box(truth if boxed is None else boxed)
    given = boxed_answer(answer)
    strict, strict_late = (None, False) if given is None else _equal(_box(given), right)
    flexible, flexible_late = _equal(answer, right)
    return Grades(strict, flexible, strict_late or flexible_late)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last `\boxed`, else the expression of Minerva's sentence; None where there is neither."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    stated = MINERVA.findall(text)
    return stated[-1].strip().strip("$") if stated else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}`, own braces included; None without one."""
    for start in reversed([found.end() for found in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth, escaped = 1, False
        for at in range(start, len(text)):
            # an escaped brace opens and closes nothing
            if escaped or text[at] == "\\":
                escaped = not escaped
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[start:at]
    return None


def _equal(given: str, right: str) -> tuple[bool | None, bool]:
    """Whether two texts state equal expressions (None: the first states none), and whether time ran out."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    # equal texts need no parser, which may not read them
    if given == right:
        return True, False
    late = False

    def limited(action: Callable[..., Any], *arguments: Any, otherwise: Any, **settings: Any) -> Any:
        nonlocal late
        try:
            return action(*arguments, raise_on_error=True, **settings)
        except TimeoutException:
            late = True
        except Exception:  # what sympy cannot parse or compare is not equal
            pass
        return otherwise

    truths, found = (limited(parse, text, otherwise=[], parsing_timeout=LIMIT_SECONDS) for text in (right, given))
    if not found:
        return None, late
    # math-verify's own loop, so that one pair that fails or takes too long does not hide the next
    pairs = product(truths, found)
    same = any(limited(verify, *pair, otherwise=False, timeout_seconds=LIMIT_SECONDS) for pair in pairs)
    return same, late and not same


def _box(expression: str) -> str:
    return rf"\boxed{{{expression}}}"
