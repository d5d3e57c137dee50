"""Memory: the known arithmetic, the settings that change it, and what is refused before it is submitted."""

import importlib.util
from pathlib import Path

import pytest

from harness.config.checks import SettingsError
from harness.config.cluster import Cluster
from harness.config.machine import Machine
from harness.models.kinds import HubModel, MiniModel
from harness.models.shapes import shape_of
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose, presets_folder
from harness.plan.estimate import train_steps
from harness.plan.memory import GB, Placement, check_memory, memory_lines, stage_memory, training_moments
from harness.plan.phase_steps import FEW_STEPS, check_phase_steps
from harness.store.store import Store
from tests.doubles import byte_tokenizer, save_tiny

PAPER = ["corpus=tulu3", "budget=paper", "student=llama_8b", "data_frac=0.01"]
NF4 = ["teacher=tulu3_70b", "teacher.quantise=nf4"]
SMALL = Placement(micro_batch_size=1, gradient_checkpointing=True)
NODE = Placement(processes=8, shard=True, micro_batch_size=1, gradient_checkpointing=True)
PAPERS = sorted(path.stem for path in (presets_folder() / "experiments" / "paper").glob("*.yaml"))


def trained(*arguments):
    """The last training stage of one cell."""
    (cell,) = compose(list(arguments)).cells
    return Plan.of([cell]).cells[0].train[-1]


def test_all_of_several_live_teachers_are_in_memory():
    members = "teacher.members=[{preset: weak}, {preset: strong, size: tiny}]"
    both = stage_memory(trained("method=logit_kd", "teacher=several", members), Placement()).parts["teacher"]
    weak, strong = (
        stage_memory(trained("method=logit_kd", *chosen), Placement()).parts["teacher"]
        for chosen in (["teacher=weak"], ["teacher=strong", "teacher.size=tiny"])
    )
    assert both == weak + strong > weak > strong > 0


def test_shapes_have_the_published_numbers_of_parameters():
    published = {
        "meta-llama/Llama-3.2-1B": 1_235_814_400,
        "meta-llama/Llama-3.2-3B": 3_212_749_824,
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
        "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    }
    for path, parameters in published.items():
        model = HubModel(path=path)
        assert shape_of(model).parameters == model.parameters() == parameters
    mini = MiniModel(size="small")
    assert shape_of(mini).parameters == mini.parameters()
    unknown = HubModel(path="someone/a-14B")
    assert shape_of(unknown).parameters == pytest.approx(14e9, rel=0.01)


def test_an_8b_student_takes_16_bytes_a_parameter_and_an_eighth_of_that_on_8_gpus():
    stage = trained("method=sft", *PAPER)
    whole, part, several = (
        next(training_moments(stage, place)).parts
        for place in (SMALL, NODE, Placement(8, micro_batch_size=1, gradient_checkpointing=True))
    )
    for parts, expected in ((whole, 128), (part, 16)):
        states = sum(parts[name] for name in ("weights", "gradients", "optimizer states"))
        assert states / GB == pytest.approx(expected, rel=0.01)
    # without sharding, several processes hold gradients twice: their own and the buckets that are averaged
    assert several["gradients"] == pytest.approx(2 * whole["gradients"])


def test_an_8b_student_that_generates_beside_a_70b_teacher_in_4_bits_does_not_fit_80_gb():
    peak = stage_memory(trained("method=kd", *PAPER, *NF4), NODE)
    assert peak.moment == "generation"
    assert peak.parts["teacher"] / GB == pytest.approx(43, rel=0.02)
    assert peak.parts["whole model, gathered"] / GB == pytest.approx(32, rel=0.01)
    assert peak.total > 80 * GB
    served = ["teacher=tulu3_70b_served"]
    many = Placement(processes=32, shard=True, micro_batch_size=1, gradient_checkpointing=True)
    assert stage_memory(trained("method=kd", *PAPER, *served), many).total < 72 * GB


def test_a_bf16_teacher_takes_2_bytes_a_weight_and_one_behind_a_server_none():
    asked = ["method=logit_kd", *PAPER]
    (live, *_), (served, *_) = (
        list(training_moments(trained(*asked, f"teacher={name}"), NODE)) for name in ("tulu3_8b", "tulu3_8b_served")
    )
    assert live.parts["teacher"] == 2 * 8_030_326_784 and "teacher" not in served.parts


def test_checkpointing_micro_batches_shards_and_adapters_take_less():
    stage = trained("method=sft", *PAPER)
    plain = stage_memory(stage, Placement(micro_batch_size=4)).total
    assert stage_memory(stage, Placement(micro_batch_size=4, gradient_checkpointing=True)).total < plain
    assert stage_memory(stage, Placement(micro_batch_size=1)).total < plain
    assert stage_memory(stage, Placement(processes=8, shard=True, micro_batch_size=4)).total < plain
    adapters = stage_memory(trained("method=sft", *PAPER, "student.lora_rank=8"), SMALL).parts
    assert adapters["weights"] == pytest.approx(4 * 8.03e9, rel=0.01) and adapters["optimizer states"] < 0.3 * GB


def cluster(**settings):
    rules = [{"gpus": 1, **settings}]
    return Cluster.of({"name": "c", "gpu_memory_gb": 80, "resources": rules})


def refused(machine, made, *arguments):
    plan = Plan.of(compose([*arguments, "measure.formats=[]"]).cells)
    with pytest.raises(SettingsError, match=r"slurm.gpu_memory_gb=80.*is expected to take") as found:
        check_memory(plan, Store(Path("nowhere")), machine, made)
    return str(found.value)


def test_what_does_not_fit_is_refused_with_the_setting_that_helps():
    small = Machine(micro_batch_size=1, gradient_checkpointing=True)
    sft = ["method=sft", *PAPER]
    assert "set shard: true and 8 GPUs" in refused(small, cluster(), *sft)
    one = ["corpus=tulu3", "budget=paper", "student=llama_1b"]
    both = "set machine.gradient_checkpointing=true and machine.micro_batch_size=1"
    assert both in refused(Machine(), cluster(), "method=sft", *one)
    node = {"gpus": 8, "shard": True}
    whole = refused(
        small, cluster(**node), "method=logit_kd", "teacher=tulu3_70b", "evals=paper", "evals.run_code=true", *one
    )
    assert "train-logit_kd" in whole and "set teacher.quantise=nf4" in whole
    live = refused(small, cluster(**node), "method=kd", *NF4, *PAPER)
    assert "teacher=served teacher.path=slurm" in live and "nodes: 4" in live
    labels = refused(small, cluster(**node), "method=seq_kd", *NF4, *PAPER)
    assert "labels-" in labels and "teacher=served" in labels


def test_nothing_is_compared_without_the_setting_or_for_jobs_without_gpus():
    plan = Plan.of(compose(["method=sft", *PAPER]).cells)
    for made in (Cluster.of({"name": "c"}), Cluster.of({"name": "c", "gpu_memory_gb": 1})):
        check_memory(plan, Store(Path("nowhere")), Machine(), made)
    with pytest.raises(SettingsError, match=r"slurm.gpu_memory_gb=0"):
        Cluster.of({"name": "c", "gpu_memory_gb": 0})


def test_a_plan_names_the_largest_stage_of_each_kind():
    plan = Plan.of(compose(["method=sft,kd", *PAPER, *NF4]).cells)
    small = Machine(micro_batch_size=1, gradient_checkpointing=True)
    lines = list(memory_lines(plan, Store(Path("nowhere")), small, cluster()))
    assert lines[0].endswith("of each kind of 80 GB:") and len(lines) == 5
    assert any(line.split()[0] == "train" and "kd-0.01-s0" in line and "teacher 42" in line for line in lines)


@pytest.mark.parametrize("slug", PAPERS)
def test_every_stage_of_a_paper_experiment_fits_80_gb_and_every_phase_has_50_steps(slug, tmp_path):
    composed = compose([f"experiments={slug}", "scale=paper", "slurm=example_h100"])
    # neither memory nor steps depend on a seed
    plan = Plan.of(cell for cell in composed.cells if cell.seed == 0)
    made = Cluster.of(composed.settings.slurm)
    assert made.gpu_memory_gb == 80
    check_memory(plan, Store(tmp_path), composed.settings.machine, made)
    check_phase_steps(plan)
    assert min(train_steps(stage) for stage in plan.stages if stage.kind == "train") >= FEW_STEPS
    assert {cell.cell.budget.least_steps_per_phase for cell in plan.cells} == {FEW_STEPS}
    lengths = {(cell.cell.corpus.max_length, cell.cell.corpus.max_new_tokens) for cell in plan.cells}
    assert lengths == {(4096, 2048)}


def test_ratios_of_synthetic_rows_have_steps_in_proportion():
    plan = Plan.of(compose(["experiments=two_stage_ratio", "scale=paper", "seed=0"]).cells)
    steps = {
        stage.inputs["synthetic"].settings["synthetic_ratio"]: train_steps(stage)
        for cell in plan.cells
        for stage in cell.train
        if "synthetic" in stage.inputs
    }
    assert sorted(steps) == [1, 3, 10, 30] and len(set(steps.values())) == 4
    assert steps[30] == pytest.approx(3 * steps[10], rel=0.01) == pytest.approx(10 * steps[3], rel=0.01)


def load_benchmark():
    """benchmarks/memory_estimate.py, which is no module of a package."""
    file = Path(__file__).parents[2] / "benchmarks" / "memory_estimate.py"
    spec = importlib.util.spec_from_file_location("memory_estimate", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("method", "machine"),
    [
        (["method=sft"], {}),
        (["method=sft"], {"gradient_checkpointing": True}),
        (["method=sft", "budget.precision=bf16"], {"micro_batch_size": 4}),
        (["method=logit_kd"], {}),
        (["method=on_policy", "method.warmup=0"], {}),
    ],
)
def test_the_estimate_is_within_a_quarter_of_what_a_training_stage_allocates(method, machine, tmp_path):
    from harness.stages.labels import save_rows
    from harness.stages.train import make_train

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "a{i}", "response": "b"}}\n' for i in range(200)))
    length, end = 64, byte_tokenizer().convert_tokens_to_ids("<|end|>")
    folders = {name: save_tiny(tmp_path / name, layers=4) for name in ("start", "teacher")}
    for part, count in (("train", 16), ("validation", 64)):
        # where the student answers, a prompt that leaves room for one token; else all is scored
        columns = {"row": list(range(count)), "id": [str(i) for i in range(count)]}
        columns |= {
            "input_ids": [[70] * (length - 1) + [end]] * count,
            "starts": [[length - 1 if "method=on_policy" in method else 1]] * count,
            "ends": [[length]] * count,
        }
        save_rows(columns, tmp_path / "subset" / part)
    stage = trained(
        *method,
        "corpus=jsonl",
        f"corpus.path={rows}",
        f"corpus.max_length={length}",
        "corpus.max_new_tokens=32",
        "student=hf",
        f"student.path={folders['start']}",
        "student.name=s",
        "teacher=hf",
        f"teacher.path={folders['teacher']}",
        "teacher.name=t",
        "budget.amount=2",
        "budget.batch_size=16",
    )
    inputs = {"start": folders["start"], "subset": tmp_path / "subset", "teacher": folders["teacher"]}
    place = Machine(device="cpu", **machine)
    (tmp_path / "out").mkdir()
    with load_benchmark().allocations() as peak:
        make_train(dict(stage.settings), {role: inputs[role] for role in stage.inputs}, tmp_path / "out", place)
    expected = stage_memory(stage, Placement.of(None, place)).total
    assert 0.75 < expected / peak() < 1.25, (expected, peak())
