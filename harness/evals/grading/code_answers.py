"""Makes the program that tests a model's answer: HumanEval (arXiv 2107.03374) and MBPP (arXiv 2108.07732).

An answer is a plain completion of the prompt, or a chat answer with its code between fences. `sandbox.py` runs the
program, and its tests beside it.

    pass@k = mean over problems of  1 - C(n - c, k) / C(n, k)     n samples, c of them right (2107.03374, eq. 1)
"""

import ast
import builtins
import re
import sys
from collections.abc import Mapping
from math import comb
from typing import Any

from harness.config.checks import refuse
from harness.evals.grading.sandbox import Program

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([\w+-]*)[^`]*$")


def humaneval_program(row: Mapping[str, Any], answer: str, in_fence: bool = False) -> Program:
    """The prompt and the answer, with the row's tests (`prompt`, `entry_point`, `test`).

    An answer that defines the function anew replaces the prompt's stub and keeps its imports and helpers; any
    other continues the prompt. `in_fence`: the prompt ended inside a block of code that the answer may close.
    """
    code = code_of(answer, [row["entry_point"]], in_fence)
    # a continuation follows at once, since the prompt may end within a line; a new definition begins a line
    between = "\n" if _defines(code, row["entry_point"]) else ""
    return Program(
        f"{row['prompt']}{between}{code}\n",
        tests=f"{row['test']}\ncheck({row['entry_point']})\n",
        names=(row["entry_point"],),
        known=row["prompt"],  # tests use its imports and its other functions
    )


def mbpp_program(row: Mapping[str, Any], answer: str, in_fence: bool = False) -> Program:
    """The answer's code and the row's `test_setup_code`, which may use that code, with the tests of `test_list`."""
    # what the tests call is what the answer has to define; of several blocks, the one that does is taken
    called = sorted({name for test in row["test_list"] for name in re.findall(r"\b([A-Za-z_]\w*)\s*\(", test)})
    source = "\n".join([code_of(answer, called, in_fence), row.get("test_setup_code") or "", ""])
    tests = "\n".join([*row["test_list"], ""])
    names, modules = _names_of(tests)
    return Program(source, tests, names, modules)


def code_of(answer: str, names: list[str], in_fence: bool = False) -> str:
    """The first fenced block that defines one of `names`, else the first block; without a fence, all of it.

    A block that is never closed (the answer was cut) goes to the end.
    """
    found = blocks(answer, in_fence)
    fitting = [code for code in found if any(_defines(code, name) for name in names)]
    return next(iter(fitting + found), answer)


def blocks(answer: str, in_fence: bool = False) -> list[str]:
    """The fenced blocks of an answer, in order, without their fences.

    `in_fence`: the prompt ended inside a block, which the answer continues. A block that the answer opens itself, with
    a language, counts too.
    """
    found: list[list[str]] = [[]] if in_fence else []
    fence = "`" * 3 if in_fence else ""
    for line in answer.split("\n"):
        mark = FENCE.match(line.rstrip())
        # in the prompt's own block a fence with a language opens a new block; in any other block it is text
        ignored = in_fence and len(found) == 1 and mark and mark[2]
        if mark and (ignored or not fence):
            fence = mark[1]
            found.append([])
        # as in Markdown: a fence is closed by one at least as long, without a language
        elif mark and fence and mark[1].startswith(fence) and not mark[2]:
            fence = ""
        elif fence:
            found[-1].append(line)
    return ["\n".join(lines) for lines in found]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the probability that one of `k` samples is right, from `right` of `samples` of a problem.

    Raises SettingsError where `k` or `right` is out of range.
    """
    if not 1 <= k <= samples:
        raise refuse("k", k, f"pass@k needs from 1 to as many as the {samples} samples of each problem")
    if not 0 <= right <= samples:
        raise refuse("right", right, f"it counts some of the {samples} samples")
    # 2107.03374, eq. 1; `comb` is 0 where fewer than k samples are wrong, which gives 1
    return 1 - comb(samples - right, k) / comb(samples, k)


def _names_of(tests: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that tests use and do not make themselves, and among these the standard library's modules.

    Built-in names are not the program's, unless the tests use no other: a task may ask for a function called `sum`.
    """
    try:
        nodes = list(ast.walk(ast.parse(tests)))
    except SyntaxError:
        return (), ()  # compiled with the program, which says why
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    names -= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = names & bases & sys.stdlib_module_names
    own = names - set(dir(builtins)) - modules
    if not own:
        own = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return tuple(sorted(own)), tuple(sorted(modules))


def _defines(code: str, name: str) -> bool:
    """Whether code defines a function (or class) of that name at its outermost level."""
    return bool(re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.MULTILINE))
