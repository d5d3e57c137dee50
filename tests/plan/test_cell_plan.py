"""Plans: shared stages once, a teacher only where it is used, addresses that mean what they say."""

from itertools import pairwise

import pytest

from harness.config.checks import SettingsError
from harness.methods import method_name, method_names
from harness.models.loading import save_model
from harness.plan.cell_plan import Plan, plan_cell
from harness.plan.compose import compose
from harness.plan.data_stages import block_edges
from harness.plan.frozen import freeze
from harness.store.fingerprint import fingerprint
from tests.doubles import byte_tokenizer, tiny_llama
from tests.thinking import family_tokenizer


def cells(*arguments):
    return compose(list(arguments)).cells


def kinds(plan):
    counts = {}
    for stage in plan.stages:
        counts[stage.kind] = counts.get(stage.kind, 0) + 1
    return counts


def test_the_main_grid_makes_each_shared_stage_once():
    plan = Plan.of(cells("data_frac=0.01,0.1,1.0", "method=sft,kd"))
    # train: 3 sft, 3 warm-ups, 3 distillations, 1 teacher; evaluate: twice 6 cells, base, teacher
    # subset: 3 fractions for the student, the whole mixture for the teacher
    counts = {"mixture": 1, "base": 2, "subset": 4, "train": 10, "evaluate": 16, "measure": 2, "overlap": 1}
    assert kinds(plan) == counts


def test_inputs_come_before_the_stages_that_use_them():
    plan = Plan.of(cells("method=two_stage,kd,seq_kd", "teacher=weak,strong"))
    place = {stage.key: index for index, stage in enumerate(plan.stages)}
    assert all(place[upstream.key] < place[stage.key] for stage in plan.stages for upstream in stage.inputs.values())


def test_sft_cells_collapse_over_the_teacher_axis():
    assert len(Plan.of(cells("method=sft", "teacher=weak,strong,none")).cells) == 1
    assert len(Plan.of(cells("method=kd", "teacher=weak,strong")).cells) == 2


def test_kd_without_a_teacher_is_refused():
    with pytest.raises(SettingsError, match="method=kd needs a teacher"):
        Plan.of(cells("method=kd", "teacher=none"))


def test_aliases_share_their_address():
    (alias,) = cells("method=kd", "method.warmup=0", "method.student_share=0", "method.divergence=forward_kl")
    (plain,) = cells("method=logit_kd")
    assert plan_cell(alias).fingerprint == plan_cell(plain).fingerprint


def test_kd_and_its_control_share_the_warm_up():
    kd, restart = (plan_cell(cell) for cell in cells("method=kd,sft_restart"))
    assert kd.train[0].key == restart.train[0].key
    assert kd.train[1].key != restart.train[1].key


@pytest.mark.parametrize(
    "override",
    [
        "store=/elsewhere",
        "launch.workers=7",
        "machine.device=cpu",
        "machine.threads=3",
        "machine.micro_batch_size=4",
        "track=wandb",
        "machine.gradient_checkpointing=true",
        "machine.checkpoint_minutes=0",
        "student.name=other",
        "grid=mine",
        "student.license=MIT",
        "teacher.license=MIT",
        "teacher.distillation_allowed=unknown",
        "teacher.acknowledge_license=true",
        "measure=deploy",
        "measure.formats=[]",
        "budget.min_steps=null",
        "budget.epochs_of=phase",  # under steps no epoch is counted
        "budget.least_steps_per_phase=5",
    ],
)
def test_what_cannot_change_a_number_keeps_the_address(override):
    (before,) = cells("method=kd")
    (after,) = cells("method=kd", override)
    assert plan_cell(before).fingerprint == plan_cell(after).fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data_seed=1",
        "train_seed=1",
        "world_seed=1",
        "teacher_seed=1",
        "data_frac=0.5",
        "budget.amount=301",
        "budget.learning_rate=2e-3",
        "budget.batch_size=16",
        "budget.min_steps=10",
        "method.student_share=0.4",
        "method.warmup=0.1",
        "corpus.noise=clean",
        "corpus.max_length=32",
        "corpus.max_new_tokens=8",
        "teacher=strong",
        "student.size=tiny",
        "student.init=random",
        "student.knows=all",
        "student.family=letters",
        "teacher.family=letters",
        "student.lora_rank=8",
        "evals.limit=10",
        "evals.names=[heldout]",
        "teacher.data_frac=match",
        "teacher.data_frac=0.5",
    ],
)
def test_what_can_change_a_number_changes_the_address(override):
    (before,) = cells("method=kd", "data_frac=0.1")
    (after,) = cells("method=kd", "data_frac=0.1", override)
    assert plan_cell(before).fingerprint != plan_cell(after).fingerprint


def test_the_teacher_axis_has_no_part_in_the_rows_a_cell_trains_on():
    weak, strong = (plan_cell(cell) for cell in cells("method=kd", "teacher=weak,strong"))
    assert weak.train[1].inputs["subset"].key == strong.train[1].inputs["subset"].key


def test_a_matched_teacher_is_trained_on_the_cells_own_rows():
    (cell,) = cells("method=kd", "data_frac=0.1", "teacher.data_frac=match", "seed=5")
    rows = plan_cell(cell).teacher.inputs["subset"].settings
    assert (rows["data_frac"], rows["data_seed"]) == (0.1, 5)


def test_a_thousand_cells_have_no_more_shared_stages_than_their_axes_need():
    plan = Plan.of(
        cells("data_frac=" + ",".join(f"{n / 100}" for n in range(1, 101)), "method=sft,kd", "seed=range(5)")
    )
    assert len(plan.cells) == 1000
    assert kinds(plan)["base"] == 2 and kinds(plan)["mixture"] == 1
    assert sum(stage.name == "teacher_weak" for stage in plan.stages) == 1  # trained once


def test_two_stage_and_its_controls_train_on_the_same_synthetic_rows():
    controls = ("method.order=synthetic_first,human_first,mixed", "method.synthetic_share=0.5,1")
    for filters in (0.0, 0.7):
        plan = Plan.of(cells("method=two_stage", *controls, f"method.near_duplicate={filters}"))
        assert len(plan.cells) == 4  # mixed rows and synthetic rows alone each have one spelling
        (rows,) = [stage for stage in plan.stages if stage.kind == "synthesize"]
        assert rows.settings["near_duplicate"] == filters
        trained = {cell.train[-1 if "human_first" in str(cell.cell.method) else 0] for cell in plan.cells}
        assert all(stage.inputs["synthetic"].key == rows.key for stage in trained)


def test_verifying_synthetic_rows_of_a_corpus_without_a_verifier_is_refused_when_planning():
    with pytest.raises(SettingsError, match=r"method\.verified=True.*corpus=tulu3"):
        Plan.of(cells("method=two_stage", "method.verified=true", "corpus=tulu3", "teacher=writer"))


def test_epochs_of_its_own_rows_change_a_phase_on_synthetic_rows_and_the_shares_that_divide_a_part():
    asked = ["method=two_stage", "budget=epochs"]
    whole, own = (plan_cell(cells(*asked, f"budget.epochs_of={one}")[0]) for one in ("cell", "phase"))
    assert [stage.settings["stage"]["span"] for stage in whole.train] == [[0.0, 0.9], [0.9, 1.0]]
    assert [stage.settings["stage"]["span"] for stage in own.train] == [[0.0, 1.0], [0.0, 1.0]]
    assert [stage.settings["budget"].get("epochs_of") for stage in own.train] == ["phase", None]
    order = cells(*asked, "method.order=human_first", "budget.epochs_of=phase")[0]  # a warm-up of a fifth, then kd
    spans = [stage.settings["stage"]["span"] for stage in plan_cell(order).train]
    assert spans == [[0.0, 0.2], [0.2, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("method", ["sft", "kd", "seq_kd", "kd_then_sft"])
def test_epochs_of_its_own_rows_keep_the_address_of_a_cell_on_its_human_rows(method):
    asked = [f"method={method}", "budget=epochs"]
    one, other = (plan_cell(cells(*asked, f"budget.epochs_of={of}")[0]) for of in ("cell", "phase"))
    assert one.fingerprint == other.fingerprint


def test_a_budget_names_its_floor_and_whose_epochs_it_counts():
    asked = ["method=sft", "budget=tulu3", "budget.min_steps=200"]
    (floor,), (own,) = cells(*asked), cells(*asked, "budget.epochs_of=phase")
    assert floor.budget.label == "2 epochs x 128 rows, at least 200 steps"
    assert own.budget.label == "2 epochs of each phase's rows x 128 rows, at least 200 steps"
    (frozen,) = freeze(Plan.of([floor]), "g").cells
    assert frozen.budget == floor.budget.label and frozen.settings["budget"]["min_steps"] == 200


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["budget.min_steps=0"], "budget.min_steps=0"),
        (["budget.min_steps=9", "budget=flops"], "budget.min_steps=9.*equal FLOPs"),
        (["budget.epochs_of=rows"], "budget.epochs_of='rows'.*cell, phase"),
        (["budget.least_steps_per_phase=0"], "budget.least_steps_per_phase=0"),
    ],
)
def test_a_floor_or_a_count_of_epochs_that_means_nothing_is_refused(override, said):
    with pytest.raises(SettingsError, match=said):
        cells("method=sft", *override)


# Written down on 2026-11-22. A change that moves one renames everybody's finished work: bump the stage's version
# when numbers change, and say so in the changelog; otherwise mend the change. The trained model, then the cell.
GOLDEN = {
    "method=sft data_frac=0.01": [
        "91976cefd302d8807d720c7d5bbca343bae2fc7e40475f795932ff9d9d46a9b5",
        "65c8a9bc98caaf768e274e7d07121fd703fafb9f6f6b0febe91ace8cdcce14a7",
    ],
    "method=kd data_frac=0.1 teacher=strong seed=3": [
        "01df958f13e1aac8ec4ed7e537191a35f48ae20ffa4087d85b0b6396230214f3",
        "b709a4a67ab2e8503eb4c28f2152cdafded1d9bbbf3b1e66e48eab24444532c3",
    ],
    "method=seq_kd budget=epochs": [
        "431d6733830cf7b23d8fbb6c4ad13a0c2e35fddfb7d130343d93b3da447f7c18",
        "5cd108b02ab65c5a62356a30c8d33aee98e8f09ee4d53831dbf2eb88a56204d7",
    ],
}


@pytest.mark.parametrize("arguments", list(GOLDEN))
def test_an_upgrade_does_not_rename_history(arguments):
    (cell,) = cells(*arguments.split())
    plan = plan_cell(cell)
    assert [plan.train[-1].fingerprint, plan.fingerprint] == GOLDEN[arguments]


# The fingerprint of the sorted fingerprints of all stages of a grid, as commit 92bf051 planned it.
GOLDEN_GRIDS = {
    "data_frac=0.01,0.1,1.0 method=sft,kd": (36, "c34cd9d994d4fe1c77d168562b174d09dcd3174ee29cb79d42b435574fa5d6a8"),
    "experiments=data_scaling": (580, "c37df29a9ff0f070d2d66fd9925a9eee9fddfc185f02ccbb8e965aafae43a5e6"),
    "experiments=two_stage": (290, "8368cd8e8b16aeb4eeca6d46697555f3d471edb0210b339c36672718ee9ee3e6"),
    "experiments=cross_family": (406, "fe946f7e2d100e59f727f3af8c850b71fd350223cae5b2d4651a735853489e80"),
}


@pytest.mark.parametrize("arguments", list(GOLDEN_GRIDS))
def test_every_stage_of_a_grid_keeps_its_address(arguments):
    stages = Plan.of(cells(*arguments.split())).stages
    assert (len(stages), fingerprint(sorted(stage.fingerprint for stage in stages))) == GOLDEN_GRIDS[arguments]


def test_a_larger_fraction_adds_blocks_of_labels_and_repeats_none():
    few, more = (plan_cell(cell) for cell in cells("method=seq_kd", "data_frac=0.03,0.3"))
    blocks = [{stage.key for stage in plan.teaching} for plan in (few, more)]
    assert blocks[0] < blocks[1]
    assert [stage.inputs["rows"].settings["block"][1] for stage in few.teaching][-2:] == [0.02, 0.05]


@pytest.mark.parametrize("override", ["budget.amount=7", "student=mini_tiny", "train_seed=5", "data_frac=0.3"])
def test_labels_know_nothing_of_the_cell_they_are_used_in(override):
    (one,), (other,) = cells("method=seq_kd", "data_frac=1"), cells("method=seq_kd", override)
    assert {stage.key for stage in plan_cell(other).teaching} <= {stage.key for stage in plan_cell(one).teaching}


def test_blocks_tile_what_a_fraction_needs():
    for fraction in (0.00001, 0.0001, 0.003, 0.01, 0.1, 0.15, 0.999, 1.0):
        edges = block_edges(fraction)
        assert edges[0][0] == 0 and edges[-1][0] < fraction <= edges[-1][1] * (1 + 1e-9)
        assert all(left[1] == right[0] for left, right in pairwise(edges))


def test_labels_of_what_is_visited_belong_to_one_cell():
    one, other = (plan_cell(cell) for cell in cells("method=seq_kd", "teacher.label_rows=visited", "budget.amount=7,8"))
    assert len(one.teaching) == len(other.teaching) == 1 and one.teaching[0].key != other.teaching[0].key


def test_self_distillation_is_taught_by_the_sft_student_of_the_same_cell():
    (sft,), (own,) = cells("method=sft", "data_frac=0.1"), cells("method=self_kd", "data_frac=0.1", "teacher=none")
    sft, own = plan_cell(sft), plan_cell(own)
    assert own.teacher is not None and own.teacher.key == sft.train[-1].key
    assert own.teacher_name == "self" and [stage.key for stage in own.making_teacher()] == [sft.train[-1].key]
    assert set(own.references) == {"base"}
    assert len(Plan.of(cells("method=self_kd", "teacher=weak,strong,none")).cells) == 1


def test_a_cache_is_made_in_blocks_once_for_every_student_and_way_of_reading_it():
    asked = ["method=logit_kd", "data_frac=0.03", "signal.kind=top_k"]
    (one,), (other,) = cells(*asked), cells(*asked, "signal.tail=renormalise", "student=mini_tiny", "seed=0")
    one, other = plan_cell(one), plan_cell(other)
    assert {stage.kind for stage in one.teaching} == {"cache"} and one.stored_signal
    assert [stage.key for stage in one.teaching] == [stage.key for stage in other.teaching]
    assert one.fingerprint != other.fingerprint and "teacher" not in one.train[-1].inputs


UNLABELLED = ["corpus.answers=none", "data_frac=0.1"]


def test_prompts_alone_have_rows_and_labels_of_their_own_and_share_corpus_teacher_and_references():
    given, none = (plan_cell(cell) for cell in cells("method=seq_kd", "data_frac=0.1", "corpus.answers=given,none"))
    assert given.fingerprint == plan_cell(cells("method=seq_kd", "data_frac=0.1")[0]).fingerprint != none.fingerprint
    assert none.teacher.key == given.teacher.key
    assert [stage.key for stage in none.targets[2:]] == [stage.key for stage in given.targets[2:]]  # references
    rows = [none.train[0].inputs["subset"], *(stage.inputs["rows"] for stage in none.teaching)]
    assert all((stage.settings["answers"], stage.settings["validation"]) == ("none", 0.0) for stage in rows)
    assert "answers" not in none.teacher.inputs["subset"].settings  # a teacher is taught by answers


def test_a_grid_names_the_cells_on_prompts_alone():
    frozen = freeze(Plan.of(cells("method=seq_kd", "corpus.answers=given,none")), "g")
    assert [cell.corpus for cell in frozen.cells] == ["mini", "mini[answers=none]"]
    assert ["answers" in cell.settings["corpus"] for cell in frozen.cells] == [False, True]


@pytest.mark.parametrize(
    "method",
    [
        ["seq_kd"],
        ["logit_kd", "method.answers=teacher"],
        ["logit_kd", "method.answers=teacher", "method.control=shuffled"],
        ["on_policy", "method.warmup=0"],
        ["skd", "method.warmup=0"],
    ],
)
def test_what_needs_no_answer_of_the_data_can_be_planned_on_prompts_alone(method):
    assert len(Plan.of(cells(*UNLABELLED, f"method={method[0]}", *method[1:])).cells) == 1


@pytest.mark.parametrize("method", sorted(set(method_names()) - {"seq_kd", "untrained"}))
def test_a_method_that_reads_the_datas_answers_is_refused_on_prompts_alone(method):
    with pytest.raises(SettingsError, match=rf"corpus.answers='none'.*method={method} reads.*method=seq_kd") as said:
        Plan.of(cells(*UNLABELLED, f"method={method}"))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("budget.kind=trained_tokens", "budget.kind='trained_tokens'"),
        ("budget.kind=flops", "budget.kind='flops'"),
        ("teacher.data_frac=match", "teacher.data_frac='match'"),
    ],
)
def test_what_counts_or_learns_answers_is_refused_on_prompts_alone(override, said):
    with pytest.raises(SettingsError, match=said):
        Plan.of(cells(*UNLABELLED, "method=seq_kd", override))


def test_a_stored_signal_of_the_teachers_own_answers_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"signal.kind='top_k'.*trains on teacher text"):
        Plan.of(cells("method=logit_kd", "method.answers=teacher", "signal.kind=top_k"))


def test_logit_kd_on_the_teachers_answers_shares_the_labels_of_seq_kd():
    (seq,), (logit,) = cells("method=seq_kd"), cells("method=logit_kd", "method.answers=teacher")
    seq, logit = plan_cell(seq), plan_cell(logit)
    assert [stage.key for stage in seq.teaching] == [stage.key for stage in logit.teaching]
    assert "teacher" in logit.train[0].inputs and "teacher" not in seq.train[0].inputs


def test_a_cache_made_by_a_server_knows_its_url_and_is_none_of_it(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    asked = ["signal.kind=top_k", "teacher=served", f"teacher.tokenizer={tmp_path}", "teacher.served_model=big"]
    (one,) = cells("method=logit_kd", *asked, "teacher.path=http://here:1")
    (other,) = cells("method=logit_kd", *asked, "teacher.path=http://there:2", "budget.precision=bf16")
    one, other = plan_cell(one), plan_cell(other)
    assert [stage.key for stage in one.teaching] == [stage.key for stage in other.teaching]
    assert {stage.where["teacher_url"] for stage in other.teaching} == {"http://there:2"}
    assert set(one.references) == {"base"}, "a server's weights are not here to be scored"
    (own,) = cells("method=self_kd", *asked, "teacher.path=http://here:1")
    (plain,) = cells("method=self_kd", "signal.kind=top_k")
    assert plan_cell(own).fingerprint == plan_cell(plain).fingerprint, "its teacher is not the one behind the server"


def test_a_live_signal_and_one_that_nobody_reads_are_no_identity():
    (live,), (sft,) = cells("method=logit_kd", "signal.kind=live"), cells("method=sft", "signal.kind=sampled")
    assert plan_cell(live).fingerprint == plan_cell(cells("method=logit_kd")[0]).fingerprint
    assert plan_cell(sft).fingerprint == plan_cell(cells("method=sft")[0]).fingerprint


@pytest.mark.parametrize("method", ["kd", "feature_kd", "cross_kd"])
def test_a_method_that_no_cache_can_serve_is_refused_in_the_plan(method):
    with pytest.raises(SettingsError, match=r"signal.kind='top_k'"):
        Plan.of(cells(f"method={method}", "signal.kind=top_k"))


def test_cells_that_differ_in_their_signal_have_names_that_differ():
    frozen = freeze(Plan.of(cells("method=sft,logit_kd", "signal.kind=live,top_k")), "g")
    assert sorted(cell.method for cell in frozen.cells) == ["logit_kd", "logit_kd[signal=top_k]", "sft"]


def test_measures_are_shared_by_every_cell_of_a_grid_and_are_no_part_of_what_a_cell_is():
    asked = ["method=sft,kd", "data_frac=0.1,1.0", "seed=0,1"]
    plan, without = Plan.of(cells(*asked, "measure=deploy")), Plan.of(cells(*asked, "measure.formats=[]"))
    assert [cell.fingerprint for cell in plan.cells] == [cell.fingerprint for cell in without.cells]
    assert "measure" not in kinds(without) and "quantise" not in kinds(without)
    assert kinds(plan)["measure"] == 2 * 4  # student and teacher in four formats
    assert kinds(plan)["quantise"] == 2 * (2 + 8 + 1)  # to int8, nf4: two bases, eight students, the trained teacher
    (rounded,) = {cell.deployments["student"]["nf4"].measure.key for cell in plan.cells}
    (base,) = {cell.train[0].inputs["start"].key for cell in plan.cells}
    assert {method_name(cell.cell.method) for cell in plan.cells} == {"sft", "kd"}
    assert next(s for s in plan.stages if s.key == rounded).inputs["model"].inputs["model"].key == base


def test_rounded_weights_are_scored_like_any_model_and_others_are_not_scored_again():
    (cell,) = cells("method=kd", "measure=deploy", "evals.names=[heldout,verified]")
    plan = plan_cell(cell)
    for role, model in (("student", plan.train[-1]), ("teacher", plan.teacher)):
        found = plan.deployments[role]
        assert not found["fp32"].evaluations and not found["bf16"].evaluations
        for name in ("int8", "nf4"):
            assert set(found[name].evaluations) == {"heldout", "verified"}
            (scored,) = {stage.inputs["model"] for stage in found[name].evaluations.values()}
            assert (scored.settings, scored.inputs["model"].key) == ({"to": name}, model.key)


def test_a_teacher_that_is_rounded_already_is_rounded_from_its_whole_weights():
    (plain,), (four,) = (cells("method=kd", "measure.formats=[nf4]", *more) for more in ([], ["teacher.quantise=nf4"]))
    plain, four = plan_cell(plain).deployments["teacher"], plan_cell(four)
    assert four.deployments["teacher"]["nf4"].measure.key == plain["nf4"].measure.key
    assert four.deployments["teacher"]["nf4"].evaluations["verified"].key == four.references["teacher"]["verified"].key


def test_a_teacher_behind_a_server_and_a_cells_own_student_are_not_measured(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    served = [f"teacher.tokenizer={tmp_path}", "teacher.served_model=big", "teacher.path=http://here:1"]
    for asked in (["method=seq_kd", "teacher=served", *served], ["method=self_kd"], ["method=sft"]):
        assert set(plan_cell(cells(*asked)[0]).deployments) == {"student"}


def test_scores_of_answers_without_their_reasoning_have_an_address_of_their_own(tmp_path):
    found = {}
    for family in ("qwen2_5", "qwen3"):
        tokenizer = family_tokenizer(family)
        save_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / family)
        hf = ("student=hf", f"student.path={tmp_path / family}", "student.name=s")
        (cell,) = cells("method=sft", "evals.names=[heldout,verified]", *hf)
        found[family] = {name: stage.settings for name, stage in plan_cell(cell).evaluations.items()}
    # a family whose answers have none keeps the address it had
    assert not any("reasoning" in settings for settings in found["qwen2_5"].values())
    assert {name: settings.get("reasoning") for name, settings in found["qwen3"].items()} == {
        "heldout": None,
        "verified": "removed",
    }
