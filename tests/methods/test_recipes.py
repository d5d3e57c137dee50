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
        ("seq_kd", {}),
        ("two_stage", {}),
        ("two_stage", {"order": "human_first"}),
        ("two_stage", {"synthetic_share": 1.0}),
        ("cross_kd", {}),
        ("cross_kd", {"warmup": 0.3}),
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
    assert (distillation["divergence"], distillation["beta"]) == ("jsd", 0.5)


def test_cross_kd_stands_beside_cross_entropy_and_shares_its_warm_up():
    (spans,) = recipe("cross_kd")
    assert (spans["sequences"], spans["divergence"], spans["span_temperature"]) == ("gold", "spans", 100.0)
    warmup, uld = recipe("cross_kd", loss="uld", warmup=0.2, span_temperature=3.0)
    assert warmup == recipe("sft_restart")[0]
    assert (uld["divergence"], uld["cross_entropy_weight"], uld["cross_tokenizer_weight"]) == ("uld", 1.0, 1.5)
    assert "span_temperature" not in uld and uld["teacher"] == "given"
    assert recipe("cross_kd", shuffled=True)[0]["control"] == "shuffled"


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
        ("seq_kd", {"teacher_temperature": -1.0}, "teacher_temperature"),
        ("cross_kd", {"loss": "forward_kl"}, "loss"),
        ("cross_kd", {"weight": 0.0}, "weight"),
        ("cross_kd", {"cross_entropy_weight": -1.0}, "cross_entropy_weight"),
        ("cross_kd", {"loss": "uld", "cross_entropy_weight": 0.0}, "which token is likely"),
        ("cross_kd", {"span_temperature": 0.0}, "span_temperature"),
        ("cross_kd", {"warmup": 1.0}, "warmup"),
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
