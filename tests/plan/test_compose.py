"""From words to cells: presets, sweeps, sweep files, and refusals that name what exists."""

import re

import pytest

from harness.config.checks import SettingsError
from harness.methods import method_names
from harness.plan.compose import compose, presets_folder


def test_commas_make_the_product_of_all_values():
    cells = compose(["data_frac=0.01,1", "method=sft,kd", "seed=0,1"]).cells
    assert len(cells) == 8
    assert {cell.data_frac for cell in cells} == {0.01, 1.0}
    assert all(isinstance(cell.data_frac, float) for cell in cells)


def test_one_fraction_written_two_ways_is_one_value():
    composed = compose(["data_frac=1e-2,0.01"])
    assert [cell.data_frac for cell in composed.cells] == [0.01]
    assert composed.notes == ("data_frac repeats a value in its sweep; each counts once",)


def test_nested_values_and_groups_sweep_together():
    cells = compose(["teacher=weak,strong", "method=kd", "method.student_share=0,1"]).cells
    assert sorted((cell.teacher.name, cell.method.student_share) for cell in cells) == [
        ("strong", 0.0),
        ("strong", 1.0),
        ("weak", 0.0),
        ("weak", 1.0),
    ]


def test_what_a_kind_of_model_needs_may_be_swept():
    found = compose(["student=hf", "student.path=models/a,models/b", "student.name=q"]).cells
    assert [cell.student.path for cell in found] == ["models/a", "models/b"]


def test_a_sweep_file_multiplies_zips_includes_and_excludes():
    sweep = {
        "product": {"method": ["sft", "kd"], "seed": [0, 1]},
        "zip": [{"data_frac": [0.01, 0.1], "budget.amount": [10, 20]}],
        "exclude": [{"method": "kd", "seed": 1}],
        "include": [{"method": "logit_kd", "data_frac": 1.0, "seed": [0, 2]}],
    }
    cells = compose([], sweep).cells
    seen = {
        (type(cell.method).__module__.rsplit(".")[-1], cell.seed, cell.data_frac, cell.budget.amount) for cell in cells
    }
    assert seen == {
        ("sft", 0, 0.01, 10.0),
        ("sft", 0, 0.1, 20.0),
        ("sft", 1, 0.01, 10.0),
        ("sft", 1, 0.1, 20.0),
        ("kd", 0, 0.01, 10.0),
        ("kd", 0, 0.1, 20.0),
        ("logit_kd", 0, 1.0, 300.0),
        ("logit_kd", 2, 1.0, 300.0),
    }


def test_the_command_line_takes_the_place_of_a_sweep_files_values():
    cells = compose(["seed=7,8"], {"product": {"seed": [0, 1, 2], "method": ["sft"]}}).cells
    assert [cell.seed for cell in cells] == [7, 8]


def test_seeds_left_alone_follow_the_seed():
    cell = compose(["seed=3", "train_seed=9", "world_seed=1", "teacher_seed=2"]).cells[0].with_seeds()
    assert (cell.data_seed, cell.train_seed, cell.student.init_seed, cell.teacher.init_seed) == (3, 9, 1, 2)


def test_draws_repeat_the_whole_grid_and_leave_a_draw_that_is_named_alone():
    sweep = {"product": {"seed": [0, 1]}, "include": [{"method": "kd"}, {"method": "kd", "world_seed": 7}]}
    cells = compose(["draws=2"], sweep).cells
    drawn = [(cell.world_seed, cell.teacher_seed, cell.seed) for cell in cells]
    assert drawn == [(0, 0, 0), (0, 0, 1), (0, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 0), (7, 0, 0)]


def test_a_replication_has_replicates_that_the_first_run_did_not_have():
    sweep = {"product": {"seed": [0]}}
    first, again = (compose(words, sweep).cells for words in (["draws=2"], ["draws=2", "first_draw=2"]))
    drawn = [[(cell.world_seed, cell.teacher_seed) for cell in cells] for cells in (first, again)]
    assert drawn == [[(0, 0), (1, 1)], [(2, 2), (3, 3)]]


def test_the_first_of_no_replicates_is_refused():
    with pytest.raises(SettingsError, match=r"first_draw=5.*set draws too"):
        compose(["first_draw=5"], {"product": {"seed": [0]}})
    with pytest.raises(SettingsError, match="first_draw=-1"):
        compose(["draws=2", "first_draw=-1"], {"product": {"seed": [0]}})


def test_an_experiment_at_the_papers_scale_is_another_file():
    mini, paper = (compose(["experiments=data_scaling", *words]) for words in ([], ["scale=paper"]))
    assert {cell.student.name for cell in mini.cells} == {"mini"}
    assert {cell.student.name for cell in paper.cells} == {"llama_1b", "llama_3b", "llama_8b"}
    assert (mini.settings.experiments, paper.settings.experiments) == ("data_scaling", "data_scaling_paper")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data_frac=0"], ["data_frac=0.0", "above 0", "try data_frac=0.01"]),
        (["data_frac=1.5"], ["data_frac=1.5", "at most 1"]),
        (["data_frac=ten"], ["data_frac='ten'", "number above 0"]),
        (["data_frac=0.1,ten"], ["data_frac='ten'", "number above 0"]),
        (["method=magic"], ["method='magic'", *method_names()]),
        (["teacher=magic"], ["teacher='magic'", "weak", "strong"]),
        (["corpus=magic"], ["corpus='magic'", "mini", "tulu3", "jsonl"]),
        (["slurm=nowhere"], ["slurm='nowhere'", "dev", "example_a100"]),
        (["experiments=nothing"], ["experiments='nothing'", "data_scaling"]),
        (["scale=paper"], ["experiments=None", "data_scaling"]),
        (["scale=paper", "experiments=data_scaling_clean"], ["'data_scaling_clean'", "strong_teacher"]),
        (["scale=huge"], ["scale='huge'", "mini, paper"]),
        (["draws=0"], ["draws=0", "at least 1"]),
        (["student.size=huge"], ["student.size='huge'", "tiny, small, large"]),
        (["bugdet.amount=3"], ["bugdet is not a setting", "budget"]),
        (["budget.amuont=3"], ["budget.amuont is not a setting", "amount"]),
        (["budget.kind=days"], ["budget.kind='days'", "epochs, steps, trained_tokens, flops"]),
        (["budget.amount=-1"], ["budget.amount=-1", "above 0"]),
        (["seed=first"], ["seed='first'"]),
        (["method=kd", "method.student_share=2"], ["student_share=2", "between 0 and 1"]),
        (["method=sft", "method.temperature=2"], ["method.temperature is not a setting"]),
        (["teacher.data_frac=2"], ["teacher.data_frac=2"]),
        (["student=hf"], ["student.path=None"]),
        (["data_frac=0.1,,"], ["data_frac"]),
    ],
)
def test_bad_input_is_one_sentence_that_names_field_value_and_what_is_allowed(arguments, words):
    with pytest.raises(SettingsError) as refusal:
        compose(arguments)
    text = str(refusal.value)
    assert "\n" not in text and "Traceback" not in text
    if arguments != ["data_frac=0.1,,"]:
        for word in words:
            assert word in text


def presets():
    for group in ("student", "teacher", "corpus", "budget", "evals"):
        for path in sorted((presets_folder() / "conf" / group).glob("*.yaml")):
            yield group, path.stem


@pytest.mark.parametrize(("group", "name"), presets())
def test_every_preset_composes(group, name, tmp_path):
    text = (presets_folder() / "conf" / group / f"{name}.yaml").read_text()
    needed = [f"{group}.{field}={tmp_path}" for field in re.findall(r"^(\w+): \?\?\?", text, re.M)]
    cells = compose([f"{group}={name}", *needed]).cells
    assert len(cells) == 1


@pytest.mark.parametrize("slug", ["cross_tokenizer", "real_smollm2"])  # the others are planned in test_experiments
def test_an_experiment_on_a_users_rows_composes(slug):
    text = (presets_folder() / "experiments" / f"{slug}.yaml").read_text()
    free = [f"{key}=/nowhere" for key in ("corpus.path",) if "???" in text]
    composed = compose([f"experiments={slug}", *free])
    assert composed.settings.experiments == slug
    assert len(composed.cells) > 1
