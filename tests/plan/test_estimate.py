"""Estimates: from settings alone, in the right proportions, and bettered by what was measured."""

import pytest

from harness.config.cluster import Cluster
from harness.evals.benchmarks import benchmark_names, load_benchmark
from harness.plan.cell_plan import Plan
from harness.plan.compose import compose
from harness.plan.estimate import estimate, measured_speed, plan_rows, plan_text, stage_seconds
from harness.store.store import Store
from tests import real


def train(*arguments):
    (cell,) = compose(["corpus.rows=1200", *arguments]).cells
    return next(stage for stage in Plan.of([cell]).stages if stage.kind == "train" and "teacher" not in stage.name)


def test_tokens_of_a_train_stage_are_steps_times_rows_times_tokens_of_a_row():
    stage = train("method=sft", "budget.amount=100", "budget.batch_size=8")
    tokens = estimate(stage).tokens / 800
    assert 15 < tokens < 22  # a row of the miniature has 18 tokens in the mean
    assert estimate(stage).flops == pytest.approx(6 * 349_824 * estimate(stage).tokens, rel=1e-6)


def test_equal_epochs_cost_in_proportion_to_the_fraction():
    tenth, whole = (estimate(train("method=sft", "budget=epochs", f"data_frac={f}")).flops for f in (0.1, 1.0))
    # 108 and 1,080 training rows (a tenth is set apart for validation) in 3 epochs of 32: whole steps, 10 and 101
    assert whole == pytest.approx(101 / 10 * tenth)


def test_a_live_teacher_adds_its_forward_passes():
    sft, kd = (estimate(train(f"method={name}")).flops for name in ("sft", "logit_kd"))
    assert kd == pytest.approx(sft + 2 * 802_560 * estimate(train("method=sft")).tokens, rel=1e-6)


def last(*arguments):
    (cell,) = compose(["corpus.rows=1200", *arguments]).cells
    return estimate(Plan.of([cell]).cells[0].train[-1])


def test_text_written_while_training_is_paid_for_by_whoever_writes_and_judges_it():
    gold, student, both = (
        last(name, "method.warmup=0", *more)
        for name, *more in (
            ("method=kd", "method.student_share=0"),
            ("method=on_policy",),
            ("method=skd",),
        )
    )
    assert gold.tokens == student.tokens == both.tokens
    assert student.flops == pytest.approx(gold.flops + 2 * 2 * 349_824 * gold.tokens)  # the student writes
    assert both.flops == pytest.approx(student.flops + 2 * 802_560 * gold.tokens)  # and the teacher judges


def test_an_adaptive_share_is_paid_for_in_part_and_looks_at_the_validation_rows():
    gold, adaptive, student = (
        last(f"method={name}", "method.warmup=0", *more).flops
        for name, *more in (("kd", "method.student_share=0"), ("distillm",), ("on_policy",))
    )
    assert gold < (gold + student) / 2 < adaptive < student


def test_a_finished_stage_of_the_same_kind_sets_the_speed(tmp_path):
    store = Store.open(tmp_path)
    (cell,) = compose(["method=sft"]).cells
    plan = Plan.of([cell])
    stage = next(stage for stage in plan.stages if stage.kind == "train")
    with store.scratch(stage.key) as out:
        store.publish(stage.key, out, {"facts": {"seconds": 10.0, "cost": {"flops": 1e11}}})
    assert measured_speed(store, plan.stages) == {"train": 1e10}
    rows = {row["kind"]: row for row in plan_rows(plan, store)}
    assert rows["train"]["done"] == 1 and rows["train"]["flops"] == 0
    assert rows["evaluate"]["seconds"] > 0
    assert stage_seconds(stage, 1e9) > stage_seconds(stage, 1e10)


def test_synthetic_rows_cost_by_their_number_or_by_their_ratio_to_the_human_rows():
    words = ["corpus.rows=1200", "method=two_stage", "method.synthetic_rows=600", "method.ratio=null,2"]
    stages = [one for one in Plan.of(compose([*words, "data_frac=0.5,1"]).cells).stages if one.kind == "synthesize"]
    tokens = {}
    for one in stages:
        tokens[one.inputs["subset"].settings["data_frac"], one.settings["synthetic_ratio"]] = estimate(one).tokens
    assert tokens[1, 0] == tokens[0.5, 0] > 0
    # 1,080 of 1,200 rows are trained on: twice as many synthetic rows are 2,160, and 600 are the number set
    assert tokens[1, 2] == pytest.approx(2 * tokens[0.5, 2]) == pytest.approx(2160 / 600 * tokens[1, 0])


def test_gpu_hours_are_arithmetic_at_the_rules_speed_and_reading_the_weights(tmp_path):
    plan = Plan.of(compose(["method=logit_kd"]).cells)
    rules = [{"kinds": ["train"], "gpus": 2, "teraflops": 50}, {"minutes": 5}]
    rows = {row["kind"]: row for row in plan_rows(plan, Store(tmp_path), Cluster.of({"name": "c", "resources": rules}))}
    train = [stage for stage in plan.stages if stage.kind == "train"]
    weights = sum(max(one.parameters for one in (stage, *stage.inputs.values())) for stage in train)
    expected = rows["train"]["flops"] / 50e12 / 3600 + 2 * 2 * weights / 1e9 / 3600
    assert rows["train"]["gpu_hours"] == pytest.approx(expected)
    assert rows["evaluate"]["gpu_hours"] == 0  # its rule has no GPU
    assert all(row["gpu_hours"] == 0 for row in plan_rows(plan, Store(tmp_path)))


def test_a_plan_with_a_cluster_is_told_in_gpu_hours_and_without_in_minutes(tmp_path):
    plan = Plan.of(compose(["method=sft"]).cells)
    assert "one worker" in plan_text(plan, Store(tmp_path))
    assert "GPU-hours" in plan_text(plan, Store(tmp_path), Cluster.of({"name": "c"}))


def test_the_tokens_of_another_family_are_its_own():
    words, letters = (
        estimate(train("method=sft", f"student.family={family}")).tokens for family in ("words", "letters")
    )
    assert 1.5 < letters / words < 2.5
    same, other = (last("method=cross_kd", f"teacher={teacher}").flops for teacher in ("weak", "letters"))
    student = last("method=sft").flops
    # the teacher reads the same rows, longer in its letters; its embeddings of fewer tokens weigh little
    assert (other - student) / (same - student) == pytest.approx(letters / words * 790_400 / 802_560, rel=1e-6)
    plan = Plan.of(compose(["corpus.rows=1200", "method=seq_kd", "teacher=weak,letters"]).cells)
    bases = {one.name: estimate(one).tokens for one in plan.stages if one.kind == "base" and one.name != "mini"}
    assert bases["letters"] / bases["weak"] == pytest.approx(36 / 21)


def test_a_benchmark_is_priced_at_the_items_its_publication_counts():
    suite = ["student=llama_1b", "corpus=tulu3", "method=untrained", "evals=paper", "evals.names=[bbh,gsm8k]"]

    def flops(*more):
        stages = Plan.of(compose([*suite, *more]).cells).stages
        return {one.settings["eval"]: estimate(one) for one in stages if one.kind == "evaluate"}

    whole, some = flops(), flops("evals.limit=1000")
    assert whole["bbh"].tokens == pytest.approx(6.511 * some["bbh"].tokens)
    assert whole["gsm8k"].tokens == pytest.approx(1.319 * some["gsm8k"].tokens)
    assert all(isinstance(load_benchmark(name).items, int) for name in benchmark_names())


@pytest.mark.parametrize("name", ["gsm8k", "humaneval", "ifeval", "pubmedqa"])
def test_a_published_file_has_as_many_items_as_its_benchmark_states(name):
    file = "gsm8k_test" if name == "gsm8k" else "pubmedqa_test" if name == "pubmedqa" else name
    assert len(real.benchmark(file)) == load_benchmark(name).items
