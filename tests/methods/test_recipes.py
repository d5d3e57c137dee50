"""Recipes: what each method trains, which ones are the same recipe, and what is refused."""

import subprocess
import sys
from itertools import pairwise

import pytest

from harness.config import SettingsError
from harness.methods import load_method, method_names


def recipe(name, **settings):
    return [stage.identity() for stage in load_method(name)(**settings).stages()]


def test_every_file_is_a_method_whose_recipe_has_an_identity():
    assert {"sft", "sft_restart", "kd", "logit_kd", "seq_kd", "two_stage"} <= set(method_names())
    assert all(recipe(name) for name in method_names())


def test_kd_on_gold_without_warm_up_is_logit_kd():
    assert recipe("kd", warmup=0.0, student_share=0.0, divergence="forward_kl") == recipe("logit_kd")


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.35])
def test_kd_on_gold_is_the_method_named_after_its_divergence(warmup):
    same = {"warmup": warmup, "student_share": 0.0, "divergence_temperature": 1.5}
    named = {"warmup": warmup, "divergence_temperature": 1.5}
    assert recipe("kd", **same, divergence="reverse_kl") == recipe("reverse_kd", **named)
    assert recipe("kd", **same, divergence="jsd", jsd_teacher_weight=0.3) == recipe(
        "jsd_kd", **named, jsd_teacher_weight=0.3
    )


def test_divergences_that_start_cold_warm_up_by_default_and_share_that_stage():
    for name in ("reverse_kd", "jsd_kd", "tvd_kd"):
        warmup, distillation = recipe(name)
        assert warmup == recipe("sft_restart")[0]
        assert (distillation["sequences"], distillation["span"]) == ("gold", [0.2, 1.0])
        assert len(recipe(name, warmup=0.0)) == 1
    assert recipe("tvd_kd")[1]["divergence"] == "tvd"
    assert recipe("jsd_kd", cross_entropy_weight=0.25)[1]["cross_entropy_weight"] == 0.25


def test_a_control_is_another_recipe_and_the_unigram_needs_no_teacher():
    recipes = [recipe("logit_kd", control=control) for control in ("none", "shuffled", "unigram")]
    assert len({str(one) for one in recipes}) == 3
    stages = [load_method("logit_kd")(control=control).stages()[0].normal() for control in ("shuffled", "unigram")]
    assert [(stage.uses_teacher, stage.asks_teacher) for stage in stages] == [(True, True), (False, False)]


def test_settings_that_a_recipe_does_not_read_leave_its_identity_alone():
    forward = {"student_share": 0.0, "divergence": "forward_kl"}
    assert recipe("kd", **forward, sampling_temperature=0.3, jsd_teacher_weight=0.9) == recipe("kd", **forward)


def test_methods_with_the_same_warm_up_share_that_stage():
    assert recipe("kd")[0] == recipe("sft_restart")[0] == recipe("kd", divergence="reverse_kl")[0]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sft", {}),
        ("sft_restart", {}),
        ("kd", {}),
        ("kd", {"warmup": 0.0}),
        ("logit_kd", {}),
        ("reverse_kd", {}),
        ("jsd_kd", {"warmup": 0.0}),
        ("tvd_kd", {}),
        ("seq_kd", {}),
        ("two_stage", {}),
        ("two_stage", {"order": "human_first"}),
        ("two_stage", {"synthetic_share": 1.0}),
    ],
)
def test_every_recipe_spends_the_whole_budget_once(name, settings):
    spans = [stage["span"] for stage in recipe(name, **settings)]
    assert spans[0][0] == 0 and spans[-1][1] == 1
    assert all(one[1] == other[0] for one, other in pairwise(spans))


def test_the_default_kd_is_gkd_after_a_warm_up():
    warmup, distillation = recipe("kd")
    assert (warmup["sequences"], warmup["divergence"], warmup["span"]) == (
        "gold",
        "cross_entropy",
        [0.0, 0.2],
    )
    assert (distillation["sequences"], distillation["student_share"]) == ("student", 0.5)
    assert (distillation["divergence"], distillation["jsd_teacher_weight"]) == ("jsd", 0.5)


def test_two_stage_trains_human_rows_last_and_gently_unless_reversed():
    synthetic, human = recipe("two_stage")
    assert (synthetic["sequences"], human["sequences"], human["learning_rate_scale"]) == (
        "synthetic",
        "student",
        0.3,
    )
    reversed_order = recipe("two_stage", order="human_first")
    assert [stage["sequences"] for stage in reversed_order] == ["student", "synthetic"]
    assert reversed_order[0]["span"] == [0.0, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("kd", {"student_share": 1.5}, "student_share"),
        ("kd", {"student_share": -0.1}, "student_share"),
        ("kd", {"divergence_temperature": 0.0}, "divergence_temperature"),
        ("kd", {"warmup": 1.0}, "warmup"),
        ("kd", {"divergence": "beta"}, "divergence"),
        ("kd", {"jsd_teacher_weight": 1.0}, "jsd_teacher_weight"),
        ("kd", {"sampling_temperature": -1.0}, "sampling_temperature"),
        ("sft_restart", {"warmup": 0.0}, "warmup"),
        ("logit_kd", {"cross_entropy_weight": 1.0}, "cross_entropy_weight"),
        ("logit_kd", {"control": "random"}, "control"),
        ("reverse_kd", {"warmup": 1.0}, "warmup"),
        ("reverse_kd", {"divergence_temperature": -1.0}, "divergence_temperature"),
        ("jsd_kd", {"jsd_teacher_weight": 0.0}, "jsd_teacher_weight"),
        ("tvd_kd", {"cross_entropy_weight": 1.0}, "cross_entropy_weight"),
        ("seq_kd", {"teacher_temperature": -1.0}, "teacher_temperature"),
        ("two_stage", {"synthetic_share": 0.0}, "synthetic_share"),
        ("two_stage", {"second": "rl"}, "second"),
    ],
)
def test_a_setting_that_cannot_be_run_is_refused_by_name(name, settings, field):
    with pytest.raises(SettingsError, match=field):
        load_method(name)(**settings)


def test_methods_import_neither_torch_nor_transformers():
    code = (
        "import sys; from harness.methods import load_method, method_names; "
        "[load_method(name) for name in method_names()]; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
