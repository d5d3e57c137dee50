"""Suite: a benchmark's card run by lm-eval on one of our models, down to items like those of any evaluation.

lm-eval makes the prompts, reads answers and grades them; the card says what is set differently from its task file,
the data comes from JSON lines or from the hub at one revision, and `suite_model.py` writes and scores. Nothing is
cached, neither requests nor answers.

    scored, facts = run_card("gsm8k", load_card("gsm8k"), data, model, tokenizer, limit=100, seed=0)
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cards import LM_EVAL, Card
from harness.checks import refuse
from harness.evals import UNREAD, Item, Score, Scored, scores_by_source
from harness.sampling import in_proportion
from harness.sandbox import check_sandbox
from harness.suite_model import Asked, SuiteModel

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Data:
    """Where a benchmark's items are: JSON lines by name of file, or the hub at a revision (null: the newest)."""

    files: tuple[Path, ...] = ()
    revision: str | None = None


def run_card(
    name: str,
    card: Card,
    data: Data,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None = None,
    seed: int = 0,
    write: Callable[..., Any] | None = None,
) -> tuple[Scored, dict[str, Any]]:
    """Ask a model everything on a card, or a seeded sample of `limit` items in proportion to the subsets.

    Returns items and counts, and what was resolved: the hub revision, and which lm-eval ran.
    Raises SettingsError where lm-eval is not the version that cards are written for, or data is missing.
    """
    check_lm_eval()
    if card.runs_code:
        check_sandbox()
    prepared = dict(card.prepare()) if card.prepare else {}
    from lm_eval.evaluator import evaluate

    revision = data.revision if data.files else resolved(card.data, data.revision)
    with _quiet():
        tasks = dict(_tasks(name, card, data.files, revision))
        if not tasks:
            raise refuse("evals.data_dir", str(data.files[0].parent), f"no file there has the rows {name} is scored on")
        sizes = {task: len(one.eval_docs) for task, one in tasks.items()}
        docs = [(task, doc) for task, size in sizes.items() for doc in range(size)]
        chosen = [docs[index] for index in in_proportion([(task, str(doc)) for task, doc in docs], limit, seed)]
        samples = {task: [doc for other, doc in chosen if other == task] for task in tasks}
        asking = SuiteModel(model, tokenizer, card.chat, write)
        results = evaluate(
            asking,
            {"tasks": {task: one for task, one in tasks.items() if samples[task]}},
            samples=samples,
            bootstrap_iters=0,
            system_instruction=card.system,
            apply_chat_template=card.chat,
            fewshot_as_multiturn=card.chat and card.multiturn,
            confirm_run_unsafe_code=card.runs_code,
        )
    answered = results["samples"] if results else {}
    items = [
        _item(name, card, name if len(tasks) == 1 else task, sample, asking.asked)
        for task, found in answered.items()
        for sample in found
        if sample["filter"] == card.filter
    ]
    assert len(items) == len(chosen), f"{len(items)} items of {len(chosen)}: is filter {card.filter} in the task?"
    counts = prepared | {
        "items": len(items),
        "of": sum(sizes.values()),
        "subsets": len(tasks),
        "truncated": sum(item.truncated for item in items),
        "hit_length_limit": sum(item.hit_length_limit for item in items),
        "unparsed_answers": sum(item.parsed == UNREAD for item in items),
        "empty_answers": sum(item.prediction is not None and not item.prediction.strip() for item in items),
    }
    scored = Scored(items, asking.asked.read_tokens, asking.asked.generated_tokens, counts)
    return scored, {"lm_eval": LM_EVAL, **({} if data.files else {"data_revision": revision})}


def summary(name: str, card: Card, items: Sequence[Item]) -> list[Score]:
    """The card's metric for `all` and for each subset."""
    return scores_by_source(name, card.column, items, lambda item: None if item.score is None else (item.score, 1))


def check_lm_eval() -> None:
    """Raise SettingsError unless the lm-eval that cards are written for is installed."""
    found = importlib.metadata.version("lm_eval") if importlib.util.find_spec("lm_eval") else None
    if found != LM_EVAL:
        way_out = 'pip install -c constraints.txt -e ".[evals]"'
        raise refuse("evals.names", f"lm-eval {found}", f"the cards are written for lm-eval {LM_EVAL}", way_out)


def resolved(data: str, revision: str | None) -> str:
    """The commit of a hub dataset that is used, whatever name it was asked by."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        sha = HfApi().dataset_info(data, revision=revision).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        way_out = "check the name and your access, or give JSON lines by evals.data_dir"
        raise refuse(
            "evals.names", data, f"the hub did not tell its revision ({type(error).__name__})", way_out
        ) from error
    assert sha is not None
    return sha


def _tasks(name: str, card: Card, files: Sequence[Path], revision: str | None) -> Iterator[tuple[str, Any]]:
    """lm-eval's tasks of a card, by name."""
    from lm_eval.api.task import ConfigurableTask

    for config in _configs(name, card):
        config |= {"num_fewshot": card.shots, "repeats": card.samples, **card.changes, **card.reads}
        if card.grade is not None:
            config |= _graded(card.metric, card.grade, card.samples)
        own = [key for key, value in config.items() if _in_lm_eval(value)]
        assert not own, f"card {name} reads with functions of its own, and must set {own[0]} too"
        config |= {"dataset_kwargs": dict(config.get("dataset_kwargs") or {})}
        if card.max_new_tokens is not None:
            sampled = {"temperature": card.temperature, "top_p": card.top_p} if card.temperature else {}
            options = {"until": list(card.stop), "max_gen_toks": card.max_new_tokens}
            config["generation_kwargs"] = {**options, "do_sample": bool(card.temperature), **sampled}
        if not card.shots:
            config = {key: value for key, value in config.items() if not key.startswith("fewshot")}
        if files:
            subset = config.get("dataset_name") if card.tasks and "*" in card.tasks else None
            rows = _local(name, files, subset, config)
            if rows is None:
                continue
            config |= {key: None for key in ("training_split", "validation_split") if config.get(key) not in rows}
            config |= {"custom_dataset": lambda rows=rows, **_: rows, "dataset_kwargs": {}, "metadata": None}
        else:
            config["dataset_kwargs"]["revision"] = revision
        task = ConfigurableTask(config=config)
        task.set_fewshot_seed(seed=1234)
        yield config["task"], task


def _configs(name: str, card: Card) -> Iterator[dict[str, Any]]:
    """lm-eval's own task files, includes resolved."""
    if card.tasks is None:
        yield {"task": name}
        return
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    found = sorted(root.glob(card.tasks))
    assert found, f"lm-eval {LM_EVAL} has no {card.tasks}"
    for path in found:
        config = load_yaml(path, resolve_func=not (card.reads or card.grade))  # some task files import what is not here
        for key in ("tag", "group", "group_alias", "task_alias"):
            config.pop(key, None)
        yield config


def _graded(metric: str, grade: Callable[..., float], samples: int) -> dict[str, Any]:
    """What makes lm-eval take an item's score from a card's own function."""
    return {
        "process_results": lambda row, results: {metric: grade(row, results[0])},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "none", "filter": [{"function": "take_first_k", "k": samples}]}],
    }


def _in_lm_eval(value: Any) -> bool:
    """Whether a value of a task file names a function that was not loaded."""
    return isinstance(value, str) and "/lm_eval/tasks/" in value


def _local(name: str, files: Sequence[Path], subset: str | None, config: Mapping[str, Any]) -> "DatasetDict | None":
    """The rows of a benchmark (of one subset) from JSON lines, under the names its task gives to splits.

    None for a subset that the folder has no row of.
    """
    from datasets import Dataset, DatasetDict

    scored = str(config.get("test_split") or config.get("validation_split"))
    shots = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
    wanted = {split for split in (scored, shots, config.get("training_split")) if split}
    begin = f"{subset}_" if subset else f"{name}_"
    by_split = {path.stem.removeprefix(begin): path for path in files if path.stem.startswith(begin)}
    whole = [path for path in files if path.stem == name]
    if whole and not subset:
        by_split[scored] = whole[0]
    if scored not in by_split:
        return None
    read = {split: _rows(by_split[split]) for split in wanted & by_split.keys()}
    found = DatasetDict({split: Dataset.from_list(rows) for split, rows in read.items()})
    mine = (config.get("process_docs") or (lambda rows: rows))(found[scored])
    return found if len(mine) else None


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _item(name: str, card: Card, source: str, sample: Mapping[str, Any], asked: Asked) -> Item:
    """One of lm-eval's samples as an item; what could not be asked is wrong, whatever lm-eval made of it."""
    prompts = [str(arguments[0]) for arguments in sample["arguments"]]
    too_long = any(prompt in asked.too_long for prompt in prompts)
    written = card.max_new_tokens is not None
    draws = [(prompts[0], draw) for draw in range(card.samples)]
    if written:
        prediction = str(sample["resps"][0][0])
        parsed = None if card.grade else str(sample["filtered_resps"][0])
    else:
        likeliest = max(range(len(sample["resps"])), key=lambda choice: sample["resps"][choice][0][0])
        prediction, parsed = str(sample["arguments"][likeliest][1]), None
    return Item(
        name,
        str(sample["doc_id"]),
        source,
        sample["prompt_hash"],
        prediction=prediction,
        target=str(sample["target"]),
        score=0.0 if too_long else float(sample[card.metric]),
        truncated=too_long,
        hit_length_limit=any(draw in asked.cut for draw in draws),
        parsed=parsed,
        cluster=None if card.cluster is None else str(sample["doc"][card.cluster]),
        tokens=sum(asked.tokens.get(draw, 0) for draw in draws) if written else None,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's logging below errors off, and its progress bars: `track` tells how far it is."""
    logger = logging.getLogger("lm_eval")
    before, logger.level = logger.level, logging.ERROR
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
