"""Recipes: what each method trains, which ones are the same recipe, and what is refused."""

import subprocess
import sys
from itertools import pairwise

import pytest

from harness.config.checks import SettingsError
from harness.methods import load_method, method_names


def recipe(name, **settings):
    return [stage.identity() for stage in load_method(name)(**settings).phases()]


def test_every_file_is_a_method_whose_recipe_has_an_identity():
    assert {"sft", "sft_restart", "kd", "kd_then_sft", "logit_kd", "seq_kd", "two_stage"} <= set(method_names())
    assert [name for name in method_names() if not recipe(name)] == ["untrained"]


def test_kd_on_gold_without_warm_up_is_logit_kd():
    assert recipe("kd", warmup=0.0, student_share=0.0, divergence="forward_kl") == recipe("logit_kd")


def test_on_policy_is_kd_on_student_text_by_reverse_kl():
    assert recipe("on_policy") == recipe("kd", student_share=1.0, divergence="reverse_kl")
    asked = {"warmup": 0.1, "divergence_temperature": 2.0, "sampling_temperature": 0.5, "learning_rate_scale": 0.3}
    assert recipe("on_policy", **asked) == recipe("kd", student_share=1.0, divergence="reverse_kl", **asked)


def test_skd_has_its_authors_settings_after_the_common_warm_up():
    warmup, distillation = recipe("skd")
    assert warmup == recipe("kd")[0]
    assert (distillation["sequences"], distillation["divergence"]) == ("interleaved", "forward_kl")
    assert (distillation["proposed_tokens"], distillation["accepted_top_k"]) == (5, 25)
    assert (distillation["sampling_temperature"], distillation["sampling_top_p"]) == (0.5, 0.5)
    assert (distillation["teacher_temperature"], distillation["teacher_top_p"]) == (0.2, 0.5)


def test_distillm_has_its_authors_settings_after_the_common_warm_up():
    warmup, distillation = recipe("distillm")
    assert warmup == recipe("kd")[0]
    assert (distillation["sequences"], distillation["adaptive"]) == ("student", True)
    assert (distillation["divergence"], distillation["skew"]) == ("skew_reverse_kl", 0.1)
    assert (distillation["student_share"], distillation["replay_rows"]) == (1.0, 1000)


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
    stages = [load_method("logit_kd")(control=control).phases()[0].normal() for control in ("shuffled", "unigram")]
    assert [(stage.uses_teacher, stage.queries_teacher) for stage in stages] == [(True, True), (False, False)]


def test_logit_kd_on_the_teachers_answers_has_the_text_of_seq_kd_and_the_divergence_of_logit_kd():
    writing = {"teacher_temperature": 0.7, "samples_per_prompt": 4, "rationale": "strip"}
    (text,), (gold,) = recipe("seq_kd", **writing), recipe("logit_kd", cross_entropy_weight=0.25)
    (both,) = recipe("logit_kd", answers="teacher", cross_entropy_weight=0.25, **writing)
    assert (text["samples_per_prompt"], text["rationale"], text["sampling_temperature"]) == (4, "strip", 0.7)
    del text["label_smoothing"]  # read by cross-entropy alone
    assert both == gold | text | {"divergence": "forward_kl"}


def test_how_a_teacher_would_write_is_no_identity_of_logit_kd_on_the_datas_answers():
    assert recipe("logit_kd", teacher_temperature=0.7, samples_per_prompt=4, rationale="strip") == recipe("logit_kd")


def test_only_recipes_on_written_text_read_no_answer_of_the_data():
    def reads(name, **settings):
        return any(stage.reads_answers for stage in load_method(name)(**settings).phases())

    blind = {
        ("seq_kd",): {},
        ("logit_kd", "teacher"): {"answers": "teacher"},
        ("on_policy", "cold"): {"warmup": 0.0},
        ("kd", "cold"): {"warmup": 0.0, "student_share": 1.0},
        ("skd", "cold"): {"warmup": 0.0},
    }
    assert not any(reads(name[0], **settings) for name, settings in blind.items())
    assert {name for name in method_names() if not reads(name)} == {"seq_kd", "untrained"}
    assert reads("distillm", warmup=0.0) and reads("kd", warmup=0.0, student_share=0.99)


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
        ("on_policy", {}),
        ("skd", {}),
        ("skd", {"warmup": 0.0}),
        ("distillm", {}),
        ("two_stage", {}),
        ("two_stage", {"order": "human_first"}),
        ("two_stage", {"order": "human_first", "second": "sft"}),
        ("two_stage", {"order": "mixed"}),
        ("two_stage", {"synthetic_share": 1.0}),
        ("kd_then_sft", {}),
        ("kd_then_sft", {"first": "logit_kd", "sft_share": 0.5}),
        ("kd_then_sft", {"warmup": 0.0}),
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
    assert (distillation["divergence"], distillation["jsd_teacher_weight"]) == ("jsd", 0.5)


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
    reversed_order = recipe("two_stage", order="human_first", second="sft")
    assert [stage["sequences"] for stage in reversed_order] == ["gold", "synthetic"]
    assert reversed_order[0]["span"] == [0.0, pytest.approx(0.1)]
    assert reversed_order[0]["learning_rate_scale"] == 0.3, "the order alone differs"


def test_two_stage_reversed_never_meets_the_jsd_cold():
    warmup, human, synthetic = recipe("two_stage", order="human_first", synthetic_share=0.5, warmup=0.4)
    assert (warmup["divergence"], human["divergence"], synthetic["sequences"]) == ("cross_entropy", "jsd", "synthetic")
    assert [warmup["span"], human["span"], synthetic["span"]] == [[0.0, 0.2], [0.2, 0.5], [0.5, 1.0]]
    assert len(recipe("two_stage", order="human_first", warmup=0.0)) == 2


def test_each_stage_of_two_stage_has_an_objective_of_its_own():
    synthetic, human = recipe("two_stage", first="logit_kd", second="logit_kd")
    assert (synthetic["sequences"], synthetic["divergence"]) == ("synthetic", "forward_kl")
    assert (human["sequences"], human["divergence"]) == ("gold", "forward_kl")


def test_the_mixed_control_is_one_stage_over_all_rows_at_the_budgets_learning_rate():
    (mixed,) = recipe("two_stage", order="mixed", human_share=0.5)
    assert (mixed["sequences"], mixed["span"], mixed["human_share"]) == ("mixed", [0.0, 1.0], 0.5)
    assert mixed["learning_rate_scale"] == 1.0
    one, other = recipe("two_stage", order="mixed"), recipe("two_stage", order="mixed", second="sft", warmup=0.1)
    assert one == other


def test_a_ratio_takes_the_place_of_a_number_of_rows():
    assert recipe("two_stage", ratio=20) == recipe("two_stage", ratio=20, synthetic_rows=7)
    assert recipe("two_stage", ratio=20)[0]["synthetic_ratio"] == 20
    assert recipe("two_stage", ratio=20) != recipe("two_stage", ratio=10)


def test_samples_nobody_votes_with_are_no_identity():
    assert recipe("two_stage", consistency_samples=9) == recipe("two_stage")
    voted = {"self_consistency": 0.6}
    assert recipe("two_stage", consistency_samples=9, **voted) != recipe("two_stage", **voted)


def test_kd_then_sft_is_kd_cut_short_and_refined_on_the_same_rows():
    warmup, distillation, refinement = recipe("kd_then_sft")
    assert warmup == recipe("kd")[0]
    assert distillation == recipe("kd")[1] | {"span": [0.2, 0.8]}
    assert (refinement["sequences"], refinement["divergence"]) == ("gold", "cross_entropy")
    assert (refinement["span"], refinement["learning_rate_scale"]) == ([0.8, 1.0], 0.3)


def test_kd_then_sft_after_logit_kd_is_the_same_however_it_is_spelt():
    plain = recipe("kd_then_sft", first="logit_kd", warmup=0.9, student_share=0.1)
    assert plain == recipe("kd_then_sft", warmup=0.0, student_share=0.0, divergence="forward_kl")
    assert plain[0] == recipe("logit_kd")[0] | {"span": [0.0, 0.8]}


def test_label_smoothing_is_a_value_of_sft():
    assert recipe("sft", label_smoothing=0.1) == [recipe("sft")[0] | {"label_smoothing": 0.1}]


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
        ("seq_kd", {"samples_per_prompt": 0}, "samples_per_prompt"),
        ("seq_kd", {"samples_per_prompt": 2}, "greedy answers to one prompt are all the same"),
        ("seq_kd", {"rationale": "drop"}, "rationale"),
        ("logit_kd", {"answers": "student"}, "answers"),
        ("logit_kd", {"answers": "teacher", "samples_per_prompt": 2}, "samples_per_prompt"),
        ("cross_kd", {"loss": "forward_kl"}, "loss"),
        ("cross_kd", {"weight": 0.0}, "weight"),
        ("cross_kd", {"cross_entropy_weight": -1.0}, "cross_entropy_weight"),
        ("cross_kd", {"loss": "uld", "cross_entropy_weight": 0.0}, "which token is likely"),
        ("cross_kd", {"span_temperature": 0.0}, "span_temperature"),
        ("cross_kd", {"warmup": 1.0}, "warmup"),
        ("two_stage", {"synthetic_share": 0.0}, "synthetic_share"),
        ("two_stage", {"second": "rl"}, "second"),
        ("on_policy", {"warmup": 1.0}, "warmup"),
        ("on_policy", {"sampling_temperature": -1.0}, "sampling_temperature"),
        ("skd", {"proposed_tokens": 0}, "proposed_tokens"),
        ("skd", {"accepted_top_k": 2.5}, "accepted_top_k"),
        ("skd", {"sampling_top_p": 0.0}, "sampling_top_p"),
        ("skd", {"teacher_top_p": 1.5}, "teacher_top_p"),
        ("skd", {"teacher_temperature": -0.1}, "teacher_temperature"),
        ("skd", {"divergence": "beta"}, "divergence"),
        ("distillm", {"skew": 1.0}, "skew"),
        ("distillm", {"student_share": 0.0}, "student_share"),
        ("distillm", {"replay_rows": 0}, "replay_rows"),
        ("distillm", {"divergence": "jsd"}, "divergence"),
        ("two_stage", {"first": "kd"}, "first"),
        ("two_stage", {"order": "both"}, "order"),
        ("two_stage", {"human_share": 1.0}, "human_share"),
        ("two_stage", {"ratio": 0.0}, "ratio"),
        ("two_stage", {"near_duplicate": 1.2}, "near_duplicate"),
        ("two_stage", {"self_consistency": float("nan")}, "self_consistency"),
        ("two_stage", {"consistency_samples": 0}, "consistency_samples"),
        ("two_stage", {"least_prompt_tokens": 0}, "least_prompt_tokens"),
        ("two_stage", {"warmup": 1.0}, "warmup"),
        ("kd_then_sft", {"sft_share": 0.0}, "sft_share"),
        ("kd_then_sft", {"sft_share": 1.0}, "sft_share"),
        ("kd_then_sft", {"sft_share": 0.8}, "warmup"),
        ("kd_then_sft", {"first": "sft"}, "first"),
        ("kd_then_sft", {"learning_rate_scale": 0.0}, "learning_rate_scale"),
        ("kd_then_sft", {"student_share": 2.0}, "student_share"),
        ("sft", {"label_smoothing": 1.0}, "label_smoothing"),
        ("sft", {"label_smoothing": -0.1}, "label_smoothing"),
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
