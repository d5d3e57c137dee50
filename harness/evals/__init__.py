"""Evaluations: scoring a model item by item, on a corpus's held-out rows or on a public benchmark.

An evaluation is a file of `corpus/` with two functions: `score(model, tokenizer, rows, options) -> Scored`, the results
item by item, and `summary(items) -> list[Score]`, pure arithmetic on them. `METRICS` names the metrics of all rows and
`METRICS_OF_TRUTH` those of rows with a known truth. The file's name is the evaluation's name; nothing else needs to
change to add one. Items are stored, so a new statistic needs no new run. Rows of the source
`canary` (facts that are in no training data) are scored on their own and never enter `all`. Public benchmarks are in
`benchmarks/` and give the same items.

    load_eval("heldout").score(model, tokenizer, rows, Options()).items[0].nll
"""

import ast
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from harness.config.checks import check_choice, refuse
from harness.config.registry import load_from, names_in
from harness.evals import corpus

ALL = "all"
CANARY = "canary"
UNREAD = "[invalid]"
"""Stands in `Item.parsed` for an answer in which nothing was found that could be compared."""
UNCLOSED = "unclosed_reasoning"
"""Name of the count of answers that were begun with reasoning and ended within it, so that no answer is there."""


@dataclass(frozen=True)
class HeldoutRow:
    """A held-out row: a conversation that ends with the corpus's own answer, and the truth where known."""

    id: str
    messages: list[dict[str, str]]
    source: str
    prompt_hash: str
    truth: str | None = None


@dataclass(frozen=True)
class Options:
    """Options of an evaluation; `batch_size` changes no result."""

    max_new_tokens: int = 16
    batch_size: int = 256


@dataclass(frozen=True)
class Item:
    """One held-out row under one evaluation; fields that the evaluation does not fill stay null."""

    eval: str
    id: str
    source: str
    prompt_hash: str
    prediction: str | None = None
    """The model's answer, without its reasoning."""
    target: str | None = None
    """The right answer it was compared with."""
    score: float | None = None
    """1 right, 0 wrong."""
    nll: float | None = None
    """Negative log-likelihood of the corpus's answers, in nats, summed over `nll_tokens`."""
    nll_tokens: int | None = None
    """Scored tokens of the corpus's answers, end-of-turn tokens included."""
    nll_truth: float | None = None
    """The same for the true last answer, where it is known."""
    nll_truth_tokens: int | None = None
    """Scored tokens of the true answer."""
    truncated: bool = False
    """The row was longer than the model's context."""
    hit_length_limit: bool = False
    """The model's answer was cut off by `max_new_tokens`."""
    parsed: str | None = None
    """The part of the answer that is compared, where a filter extracts one."""
    cluster: str | None = None
    """Items of one cluster (a passage, a story) are not independent."""
    tokens: int | None = None
    """Tokens of the model's answer, its reasoning included."""


@dataclass(frozen=True)
class Scored:
    """Items of one evaluation and the tokens processed for them."""

    items: list[Item]
    read_tokens: int = 0
    """Prompt and answer tokens that the model processed without generating them."""
    generated_tokens: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """Counts of rows that were skipped, unparsed or cut off, by name."""


@dataclass(frozen=True)
class Score:
    """A mean over items: those of one source, or `all` items but the canary's."""

    eval: str
    metric: str
    source: str
    score: float
    standard_error: float
    items: int


def eval_names() -> tuple[str, ...]:
    """Names of the evaluations on a corpus: the files of `corpus/`."""
    return names_in(corpus.__path__)


def load_eval(name: str) -> ModuleType:
    """The module of one evaluation; raises SettingsError with the list of names for an unknown one."""
    return load_from(corpus.__name__, corpus.__path__, name, "evals.names")


def describe(name: str) -> str:
    """The docstring of an evaluation's file, read without importing it; raises SettingsError for an unknown name."""
    return ast.get_docstring(_parsed(name)) or ""


def metrics_of_eval(name: str, truth: bool = True) -> tuple[str, ...]:
    """The metrics that an evaluation's file states, read without importing it; `truth`: those of known truths too.

    Raises SettingsError for an unknown name and for a file that states none.
    """
    wanted = ("METRICS", "METRICS_OF_TRUTH") if truth else ("METRICS",)
    stated = {
        target.id: ast.literal_eval(line.value)
        for line in _parsed(name).body
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name) and target.id in ("METRICS", "METRICS_OF_TRUTH")
    }
    if not stated:
        way_out = 'add METRICS = ("...",), or METRICS_OF_TRUTH where the truth of a row is needed'
        raise refuse("evals.names", name, "its file does not state the metrics that summary() returns", way_out)
    return tuple(metric for constant in wanted for metric in stated.get(constant, ()))


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of the metric is the better one; losses are better when lower."""
    return not any(word in metric for word in ("nll", "loss", "perplexity"))


def _parsed(name: str) -> ast.Module:
    """The file of an evaluation as a syntax tree."""
    check_choice("evals.names", name, eval_names())
    # an added evaluation may lie in another folder of the package's path
    file = next(file for folder in corpus.__path__ if (file := Path(folder) / f"{name}.py").is_file())
    # read as text: importing it would load torch for a help screen
    return ast.parse(file.read_text())


def scores_by_source(
    name: str, metric: str, items: Sequence[Item], value: Callable[[Item], tuple[float, float] | None]
) -> list[Score]:
    """Scores for `all` and for each source: sum of values over sum of weights.

    `value(item)` is (value, weight), or None for an item that has neither; (score, 1) gives a plain mean,
    (nats, tokens) a mean per token. The standard error is that of a ratio of means over items
    (linearised), which for equal weights is the usual one; NaN for a single item.
    """
    # an item of weight 0 has nothing to measure, and would count in the standard error
    measured = [(item.source, pair) for item in items if (pair := value(item)) is not None and pair[1] > 0]
    sources = sorted({source for source, _ in measured})
    # the canary measures leakage; in a mean over sources it would be one of them
    groups = [(ALL, [pair for source, pair in measured if source != CANARY])]
    groups += [(name_, [pair for source, pair in measured if source == name_]) for name_ in sources]
    return [Score(name, metric, source, *_ratio(pairs), items=len(pairs)) for source, pairs in groups if pairs]


def _ratio(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    pairs = list(pairs)
    # `fsum` is exact, so a mean does not depend on the order of the items
    weight = math.fsum(w for _, w in pairs)
    mean = math.fsum(v for v, _ in pairs) / weight
    n = len(pairs)
    if n == 1:
        return mean, math.nan
    # the linearised error of a ratio of sums: deviations of value from mean x weight
    residual = math.fsum((v - mean * w) ** 2 for v, w in pairs)
    return mean, math.sqrt(residual * n / (n - 1)) / weight
