"""Runs a benchmark with lm-eval on one of our models; the results are items like those of any evaluation.

lm-eval makes the prompts, parses the answers and grades them. The benchmark's file states the differences from
lm-eval's task file, the data comes from JSON lines or from the hub at one revision, and `model.py` generates and
scores. Neither requests nor answers are cached.

    scored, facts = run_benchmark("gsm8k", load_benchmark("gsm8k"), data, model, tokenizer, limit=100, seed=0)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.evals import UNCLOSED, UNREAD, Item, Score, Scored, scores_by_source
from harness.evals.benchmarks import LM_EVAL, Benchmark
from harness.evals.grading.sandbox import check_sandbox
from harness.evals.lm_evaluation.model import LmEvalModel, RequestTally
from harness.evals.lm_evaluation.tasks import Data, check_lm_eval, open_tasks, quiet, scored_data, source_of
from harness.evals.subsample import in_proportion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_benchmark(
    name: str,
    benchmark: Benchmark,
    data: Data,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None = None,
    seed: int = 0,
    write: Callable[..., Any] | None = None,
) -> tuple[Scored, dict[str, Any]]:
    """Score a model on all items of a benchmark, or on a seeded sample of `limit` items in proportion to the subsets.

    `write`: generates answers in place of `model` (see `LmEvalModel`). Returns items and counts, and what was
    resolved: the data that was scored with its split, the hub revision, and lm-eval's version. Raises SettingsError
    where lm-eval is not the version that the benchmarks are written for, data is missing, or code cannot be run in the
    sandbox.
    """
    # all that can refuse comes before the first answer is generated
    check_lm_eval()
    if benchmark.runs_code:
        check_sandbox()
    prepared = dict(benchmark.prepare()) if benchmark.prepare else {}
    from lm_eval.evaluator import evaluate

    with quiet():
        tasks, revision = open_tasks(name, benchmark, data)
        sizes = {task: len(one.eval_docs) for task, one in tasks.items()}
        docs = [(task, doc) for task, size in sizes.items() for doc in range(size)]
        # sampled here and not by lm-eval, whose limit takes the first items of each subset
        chosen = [docs[index] for index in in_proportion([(task, str(doc)) for task, doc in docs], limit, seed)]
        samples = {task: [doc for other, doc in chosen if other == task] for task in tasks}
        choices = benchmark.max_new_tokens is None
        lm_eval_model = LmEvalModel(model, tokenizer, benchmark.chat, write, choices=choices)
        results = evaluate(
            lm_eval_model,
            {"tasks": {task: one for task, one in tasks.items() if samples[task]}},
            samples=samples,
            # the standard errors are computed from the items (`scores_by_source`)
            bootstrap_iters=0,
            system_instruction=benchmark.system,
            apply_chat_template=benchmark.chat,
            fewshot_as_multiturn=benchmark.chat and benchmark.multiturn,
            confirm_run_unsafe_code=benchmark.runs_code,
        )
    answered = results["samples"] if results else {}
    items = [
        _item(name, benchmark, source_of(name, task, tasks), sample, lm_eval_model.tally)
        for task, found in answered.items()
        for sample in found
        if sample["filter"] == benchmark.filter
    ]
    assert len(items) == len(chosen), f"{len(items)} items of {len(chosen)}: is filter {benchmark.filter} in the task?"
    counts = prepared | {
        "items": len(items),
        "of": sum(sizes.values()),
        "subsets": len(tasks),
        "truncated": sum(item.truncated for item in items),
        "hit_length_limit": sum(item.hit_length_limit for item in items),
        "unparsed_answers": sum(item.parsed == UNREAD for item in items),
        **({} if choices else {UNCLOSED: len(lm_eval_model.tally.unclosed)}),
        "empty_answers": sum(item.prediction is not None and not item.prediction.strip() for item in items),
    }
    scored = Scored(items, lm_eval_model.tally.read_tokens, lm_eval_model.tally.generated_tokens, counts)
    resolved = {"lm_eval": LM_EVAL, "scored": scored_data(name, benchmark, data, tasks)}
    return scored, resolved | ({} if data.files else {"data_revision": revision})


def summary(name: str, benchmark: Benchmark, items: Sequence[Item]) -> list[Score]:
    """The benchmark's metric for `all` items and for each subset."""
    return scores_by_source(name, benchmark.column, items, lambda item: None if item.score is None else (item.score, 1))


def _item(name: str, benchmark: Benchmark, source: str, sample: Mapping[str, Any], tally: RequestTally) -> Item:
    """One of lm-eval's samples as an item; one whose prompt does not fit into the context is wrong."""
    prompts = [str(arguments[0]) for arguments in sample["arguments"]]
    # a multiple-choice item has a request for each choice, and one that did not fit makes the item wrong
    too_long = any(prompt in tally.too_long for prompt in prompts)
    written = benchmark.max_new_tokens is not None
    draws = [(prompts[0], draw) for draw in range(benchmark.samples)]
    if written:
        prediction = str(sample["resps"][0][0])
        parsed = None if benchmark.grade else str(sample["filtered_resps"][0])
    else:
        # of given choices the most probable one stands for the answer
        best = max(range(len(sample["resps"])), key=lambda choice: sample["resps"][choice][0][0])
        prediction, parsed = str(sample["arguments"][best][1]), None
    return Item(
        name,
        str(sample["doc_id"]),
        source,
        sample["prompt_hash"],
        prediction=prediction,
        target=str(sample["target"]),
        score=0.0 if too_long else float(sample[benchmark.metric]),
        truncated=too_long,
        hit_length_limit=any(draw in tally.cut for draw in draws),
        parsed=parsed,
        cluster=None if benchmark.cluster is None else str(sample["doc"][benchmark.cluster]),
        tokens=sum(tally.tokens.get(draw, 0) for draw in draws) if written else None,
    )
