"""lm-eval's tasks: its task files with a benchmark's changes, on data from JSON lines or the hub, and their items.

`run.py` scores a model on what is here. Nothing of lm-eval is imported before a task is opened.

    tasks, revision = open_tasks("gsm8k", load_benchmark("gsm8k"), Data((Path("gsm8k_test.jsonl"),)))
    item_texts("gsm8k", benchmark, data)[0][0]       # ("gsm8k", "0", "Q: Janet's ducks lay 16 eggs per day. [...]")
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

from harness.config.checks import refuse
from harness.config.file_hash import file_sha256
from harness.config.hub import HubRepository, fetch, hub_refusals, resolve
from harness.evals import ALL
from harness.evals.benchmarks import LM_EVAL, SUBSETS, Benchmark, load_benchmark, scored_file

if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True)
class Data:
    """Where a benchmark's items are: JSON lines by name of file, or the hub at a revision (null: the newest)."""

    files: tuple[Path, ...] = ()
    revision: str | None = None


def planned(name: str, settings: Mapping[str, Any], files: Sequence[str]) -> tuple[Benchmark, Data]:
    """A benchmark and its data.

    Raises SettingsError where they differ from what a stage's `settings` state, OSError where a file is gone.
    """
    benchmark, paths = load_benchmark(name), tuple(map(Path, files))
    if benchmark.identity() != settings["card"]:
        raise refuse("evals.names", name, "its file here changed after the grid was planned", "run the grid again")
    if changed := [path for path in paths if file_sha256(path) != settings["files"][path.name]]:
        raise refuse("evals.data_dir", str(changed[0]), "it changed after the grid was planned", "run the grid again")
    return benchmark, Data(paths, settings.get("revision"))


def open_tasks(name: str, benchmark: Benchmark, data: Data) -> tuple[dict[str, Any], str | None]:
    """lm-eval's tasks of a benchmark, by name, and the hub revision of data from the hub.

    Raises SettingsError where the files have no row of the benchmark, or the hub does not answer.
    """
    # resolved to a commit first, so that items and receipt name one state of the data
    if data.files:
        revision, tasks = None, dict(_tasks(name, benchmark, data.files, None))
    else:
        revision = resolve(repository := hub_data(name, benchmark, data.revision))
        with hub_refusals(repository):
            try:
                tasks = dict(_tasks(name, benchmark, (), revision))
            except OSError:
                # `datasets` keeps the hub's answer to itself; one small file is refused for the same reason
                fetch(repository, ["README.md"])
                raise
    if not tasks:
        why = f"no file there has the rows {name} is scored on, {benchmark.split_in_words}"
        raise refuse("evals.data_dir", str(data.files[0].parent), why)
    return tasks, revision


def source_of(name: str, task: str, tasks: Mapping[str, Any]) -> str:
    """The source of a task's items: the task's name, or the benchmark's where it has one task."""
    return name if len(tasks) == 1 else task


def scored_data(name: str, benchmark: Benchmark, data: Data, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What is scored of a benchmark's data, for the record: the splits, and its files here or the hub's data set."""
    configs = [vars(task.config) for task in tasks.values()]
    if not data.files:
        return {"data": benchmark.data, "splits": sorted({_hub_split(config) for config in configs})}
    found = {}
    for config in configs:
        begin, file = _scored_file(name, benchmark, data.files, config)
        assert file is not None, "the task has its rows"
        found[file.name] = file.stem.removeprefix(begin) if file.stem.startswith(begin) else ALL
    return {"files": sorted(found), "splits": sorted(set(found.values()))}


def item_texts(name: str, benchmark: Benchmark, data: Data) -> tuple[list[tuple[str, str, str]], str | None]:
    """Source, id and text of every item, named as by `run_benchmark`, and the hub revision of data from the hub.

    The text is the prompt without chat template, system prompt and shots. Raises SettingsError as `check_lm_eval` and
    `open_tasks` do.
    """
    check_lm_eval()
    if benchmark.prepare:
        benchmark.prepare()
    with quiet():
        tasks, revision = open_tasks(name, benchmark, data)
        found = [
            (source_of(name, task, tasks), str(number), str(one.doc_to_text(doc)))
            for task, one in tasks.items()
            for number, doc in enumerate(one.eval_docs)
        ]
    return found, revision


def check_lm_eval() -> None:
    """Raise SettingsError unless the version of lm-eval that the benchmarks are written for is installed."""
    found = importlib.metadata.version("lm_eval") if importlib.util.find_spec("lm_eval") else None
    if found != LM_EVAL:
        way_out = 'pip install -c constraints.txt -e ".[evals]"'
        raise refuse("evals.names", f"lm-eval {found}", f"the benchmarks are written for lm-eval {LM_EVAL}", way_out)


def hub_data(name: str, benchmark: Benchmark, revision: str | None) -> HubRepository:
    """The data set of a benchmark on the hub, at a revision."""
    settings = ("evals.names", f"evals.revisions.{name}")
    return HubRepository(benchmark.data, *settings, revision, "dataset", "give its JSON lines by evals.data_dir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch off lm-eval's progress bars and its logging below errors; `runtime.progress` reports progress."""
    # put back afterwards: the level is that of the whole process
    logger = logging.getLogger("lm_eval")
    before, logger.level = logger.level, logging.ERROR
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def _tasks(name: str, benchmark: Benchmark, files: Sequence[Path], revision: str | None) -> Iterator[tuple[str, Any]]:
    """lm-eval's tasks of a benchmark, by name."""
    from lm_eval.api.task import ConfigurableTask

    for config in _configs(name, benchmark):
        config |= {"num_fewshot": benchmark.shots, "repeats": benchmark.samples, **benchmark.changes, **benchmark.reads}
        if benchmark.grade is not None:
            config |= _graded(benchmark.metric, benchmark.grade, benchmark.samples)
        # such a function was not loaded, and its name would stand where a function or a template belongs
        own = [key for key, value in config.items() if _in_lm_eval(value)]
        assert not own, f"card {name} sets functions of its own, and must set {own[0]} too"
        config |= {"dataset_kwargs": dict(config.get("dataset_kwargs") or {})}
        if benchmark.max_new_tokens is not None:
            sampled = {"temperature": benchmark.temperature, "top_p": benchmark.top_p} if benchmark.temperature else {}
            options = {"until": list(benchmark.stop), "max_gen_toks": benchmark.max_new_tokens}
            config["generation_kwargs"] = {**options, "do_sample": bool(benchmark.temperature), **sampled}
        # lm-eval opens the split of the examples even where it shows none, and the files may lack it
        if not benchmark.shots:
            config = {key: value for key, value in config.items() if not key.startswith("fewshot")}
        if files:
            rows = _local(name, benchmark, files, config)
            if rows is None:
                continue
            # no split that the files lack is left in the task
            config |= {key: None for key in ("training_split", "validation_split") if config.get(key) not in rows}
            config |= {"custom_dataset": lambda rows=rows, **_: rows, "dataset_kwargs": {}, "metadata": None}
        else:
            config["dataset_kwargs"]["revision"] = revision
        task = ConfigurableTask(config=config)
        task.set_fewshot_seed(seed=1234)
        yield config["task"], task


def _configs(name: str, benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    """lm-eval's own task files, includes resolved."""
    if benchmark.tasks is None:
        yield {"task": name}
        return
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    found = sorted(root.glob(benchmark.tasks))
    assert found, f"lm-eval {LM_EVAL} has no {benchmark.tasks}"
    for path in found:
        config = load_yaml(
            path, resolve_func=not (benchmark.reads or benchmark.grade)
        )  # some task files import what is not here
        for key in ("tag", "group", "group_alias", "task_alias"):
            config.pop(key, None)
        yield config


def _graded(metric: str, grade: Callable[..., float], samples: int) -> dict[str, Any]:
    """The task settings with which lm-eval takes an item's score from a benchmark's own function."""
    return {
        "process_results": lambda row, results: {metric: grade(row, results[0])},
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "none", "filter": [{"function": "take_first_k", "k": samples}]}],
    }


def _in_lm_eval(value: Any) -> bool:
    """Whether a value of a task file names a function of lm-eval that was not loaded."""
    return isinstance(value, str) and "/lm_eval/tasks/" in value


def _local(name: str, benchmark: Benchmark, files: Sequence[Path], config: Mapping[str, Any]) -> "DatasetDict | None":
    """The rows of a benchmark, or of one subset, from JSON lines, under the names that its task gives to splits.

    None where the files have no row of the subset.
    """
    from datasets import Dataset, DatasetDict

    scored = _hub_split(config)
    shots = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
    begin, file = _scored_file(name, benchmark, files, config)
    if file is None:
        return None
    wanted = {f"{begin}{split}": split for split in (shots, config.get("training_split")) if split and split != scored}
    paths = {wanted[path.stem]: path for path in files if path.stem in wanted and path != file}
    found = DatasetDict({split: Dataset.from_list(_rows(path)) for split, path in {scored: file, **paths}.items()})
    # a task may keep none of the rows, e.g. of another subset in one file
    mine = (config.get("process_docs") or (lambda rows: rows))(found[scored])
    return found if len(mine) else None


def _hub_split(config: Mapping[str, Any]) -> str:
    """The hub's name for the split that a task scores."""
    return str(config.get("test_split") or config.get("validation_split"))


def _scored_file(
    name: str, benchmark: Benchmark, files: Sequence[Path], config: Mapping[str, Any]
) -> tuple[str, Path | None]:
    """The file that a task scores, null where it has none, and what stands before the split in its name."""
    subset = config.get("dataset_name") if benchmark.tasks and "*" in benchmark.tasks else None
    begin = f"{subset or name}_"
    return begin, scored_file(begin, files, _hub_split(config) if benchmark.split == SUBSETS else benchmark.split)


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
