"""The split that is scored: every benchmark's against the table in the documentation, and of local files."""

import json
from pathlib import Path

import pytest

from harness.config.checks import SettingsError
from harness.config.evaluation import Evals
from harness.evals.benchmarks import SUBSETS, benchmark_identity, benchmark_names, data_files, load_benchmark
from harness.evals.benchmarks.pubmedqa import TEST_IDS
from tests.real import DATA, benchmark

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[evals]'")

from harness.evals.lm_evaluation.tasks import Data, _configs, open_tasks, scored_data

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluations.md"
COLUMNS = "| benchmark | data on the hub | configuration | scored | items | worked examples from |"


def documented():
    """The table of splits, by benchmark: data, configuration, scored, items, examples."""
    lines = DOCUMENT.read_text().split(COLUMNS)[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in rows}


def test_the_documentation_names_the_split_of_every_benchmark():
    assert sorted(documented()) == sorted(benchmark_names())


@pytest.mark.parametrize("name", benchmark_names())
def test_the_split_that_the_tasks_score_is_the_documented_one(name):
    data, configuration, scored, items, examples = documented()[name]
    card = load_benchmark(name)
    configs = [config | card.changes for config in _configs(name, card)]
    assert {config["dataset_path"] for config in configs} == {data} == {card.data}
    named = {config.get("dataset_name") for config in configs}
    assert configuration == (f"each of {len(configs)}" if len(named) > 1 else named.pop() or "")
    splits = {config.get("test_split") or config["validation_split"] for config in configs}
    assert ", ".join(sorted(splits)) == scored.split(", cut")[0] and int(items.replace(",", "")) == card.items
    # local files go by the name of the published split
    assert card.split == {"musr": SUBSETS, "pubmedqa": "test"}.get(name, splits.pop())
    shown = "" if not card.shots else (configs[0].get("fewshot_config") or {}).get("split", "the prompt")
    assert shown == examples


def row(number, fold):
    return {"pubid": number, "question": f"Does {fold} {number} help?", "contexts": ["x"], "final_decision": "yes"}


def write(folder, **files):
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def opened(folder, name="pubmedqa"):
    data = Data(tuple(data_files(name, folder)))
    tasks, _ = open_tasks(name, load_benchmark(name), data)
    return [doc["question"] for doc in tasks[name].eval_docs], scored_data(name, load_benchmark(name), data, tasks)


def test_the_training_file_is_not_scored_beside_a_test_file(tmp_path):
    write(tmp_path, pubmedqa_train=[row(1, "train")], pubmedqa_test=[row(2, "test"), row(3, "test")])
    questions, scored = opened(tmp_path)
    assert questions == ["Does test 2 help?", "Does test 3 help?"]
    assert scored == {"files": ["pubmedqa_test.jsonl"], "splits": ["test"]}


def test_a_file_of_both_halves_is_cut_to_the_ids_of_the_test(tmp_path):
    of_test = sorted(TEST_IDS)[:2]
    write(tmp_path, pubmedqa=[row(number, "one") for number in (*of_test, "1", "2")])
    assert opened(tmp_path)[0] == [f"Does one {number} help?" for number in of_test]
    assert len(TEST_IDS) == 500


def test_training_rows_alone_are_refused_before_anything_is_computed(tmp_path):
    write(tmp_path, pubmedqa_train=[row(1, "train")])
    with pytest.raises(
        SettingsError, match=r"evals\.data_dir=.*only pubmedqa_train\.jsonl .*add pubmedqa\.jsonl or pub"
    ):
        data_files("pubmedqa", tmp_path)


def test_two_files_that_could_be_the_test_are_refused(tmp_path):
    write(tmp_path, gsm8k=[{}], gsm8k_test=[{}])
    with pytest.raises(SettingsError, match=r"gsm8k\.jsonl and gsm8k_test\.jsonl .*leave one of them"):
        data_files("gsm8k", tmp_path)


def test_an_address_moves_only_where_another_file_is_scored(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
        write(folder, ifeval_train=[{}])
    write(both, ifeval_test=[{}])
    identity = [benchmark_identity(Evals(names=["ifeval"], data_dir=str(folder)), "ifeval") for folder in (alone, both)]
    assert "scored" not in identity[0] and identity[1]["scored"] == "test"


def test_the_published_halves_of_pubmedqa_are_apart():
    assert {one["pubid"] for one in benchmark("pubmedqa_test")} == TEST_IDS
    questions, scored = opened(DATA)
    held = {one["question"] for one in benchmark("pubmedqa_train")}
    assert len(questions) == 500 and not held & set(questions) and scored["files"] == ["pubmedqa_test.jsonl"]
