"""The train stage under several teachers, from folders to folders: live, by labels and by caches."""

import json

import numpy as np
import pytest

from harness.config.checks import SettingsError
from harness.config.recipe import TrainingPhase
from harness.config.teacher_signal import Signal
from harness.data.sequences import Rows
from harness.models.flops import forward_flops
from harness.models.loading import count_parameters, load_model
from harness.stages.labels import make_labels
from harness.stages.logit_cache import make_cache
from harness.stages.train import make_train
from harness.teachers.several import Assignment
from tests.doubles import save_tiny
from tests.stages.small_world import run
from tests.stages.test_labels import label_settings
from tests.stages.test_train import settings, steps_of

HALVES = [{"share": 0.5}, {"share": 0.5}]
FORWARD = TrainingPhase(divergence="forward_kl")
TOP_K = Signal(kind="top_k", top_k=6)


@pytest.fixture
def two(world, tmp_path):
    """The world with two teachers, of different sizes."""
    del world["teacher"]
    teachers = [save_tiny(tmp_path / "one", seed=1), save_tiny(tmp_path / "other", seed=2, layers=3)]
    return world, teachers


def asked(phase, members, combine="by_row", **changes):
    return settings(phase, teachers={"combine": combine, "members": members}, **changes)


def live(world, teachers):
    return {name: world[name] for name in ("subset", "start", "mixture")} | {
        f"teacher:{place}": folder for place, folder in enumerate(teachers)
    }


def test_rows_that_one_member_teaches_are_trained_as_under_it_alone(two, tmp_path):
    world, teachers = two
    members = [{"sources": ["other"]}, {"sources": ["add"]}]  # every row is of the source add
    _, several = run(make_train, asked(FORWARD, members), live(world, teachers), tmp_path, "several")
    inputs = {"subset": world["subset"], "start": world["start"], "teacher": teachers[1]}
    _, single = run(make_train, settings(FORWARD), inputs, tmp_path, "single")
    assert steps_of(several) == steps_of(single)


def test_each_member_is_charged_for_what_it_read(two, tmp_path):
    world, teachers = two
    sizes = [count_parameters(load_model(folder)) for folder in teachers]
    facts, folder = run(make_train, asked(FORWARD, HALVES), live(world, teachers), tmp_path, "by_row")
    mean, other = run(make_train, asked(FORWARD, HALVES, "mean"), live(world, teachers), tmp_path, "mean")
    read = facts["counts"]["read_tokens"]
    assert facts["cost"]["teacher_tokens"] == read and mean["cost"]["teacher_tokens"] == 2 * read
    assert mean["cost"]["teacher_flops"] == forward_flops(sum(sizes), read)
    assert forward_flops(sizes[0], read) < facts["cost"]["teacher_flops"] < forward_flops(sizes[1], read)
    alone = facts["cost"]["flops"] - facts["cost"]["teacher_flops"]
    assert mean["cost"]["flops"] - mean["cost"]["teacher_flops"] == alone
    assert steps_of(folder) != steps_of(other)
    assert {"teacher_entropy", "overlap"} <= facts["metrics"]["diagnostics"].keys() and json.dumps(facts)


def test_the_students_own_text_has_the_teacher_of_its_prompts_row(two, tmp_path):
    world, teachers = two
    phase = TrainingPhase(sequences="student", student_share=1.0, divergence="reverse_kl")
    facts, _ = run(make_train, asked(phase, HALVES, max_new_tokens=5), live(world, teachers), tmp_path, "own")
    assert facts["counts"]["student_steps"] == 10 and facts["cost"]["teacher_flops"] > 0


def labelled(world, teachers, tmp_path):
    """Both teachers' labels of all rows, as inputs of a train stage."""
    inputs = {name: world[name] for name in ("subset", "start", "mixture")}
    for place, teacher in enumerate(teachers):
        made = run(make_labels, label_settings(), {"rows": world["subset"], "teacher": teacher}, tmp_path, f"l{place}")
        inputs[f"labels:{place}:1"] = made[1]
    return inputs


def test_each_row_is_trained_on_its_own_teachers_answer(two, tmp_path, monkeypatch):
    world, teachers = two
    inputs, seen = labelled(world, teachers, tmp_path), []
    real = __import__("harness.stages.train", fromlist=["fit"]).fit
    monkeypatch.setattr(
        "harness.stages.train.fit", lambda *args, **named: (seen.append(args[2]), real(*args, **named))[1]
    )
    phase = TrainingPhase(sequences="teacher")
    run(make_train, asked(phase, HALVES), inputs, tmp_path, "several")
    for place in (0, 1):
        one = {"subset": world["subset"], "start": world["start"], "labels:1": inputs[f"labels:{place}:1"]}
        run(make_train, settings(phase), one, tmp_path, f"single-{place}")

    def answers(data):
        rows = Rows(data.dataset)
        return {rows[int(i)].number: rows[int(i)].input_ids.tolist() for i in np.unique(data.batches)}

    several, *alone = map(answers, seen)
    teaches = dict(zip(several, Assignment(HALVES, world["mixture"]).of(list(several)).tolist(), strict=True))
    assert set(teaches.values()) == {0, 1} and several.keys() == alone[0].keys() == alone[1].keys()
    assert all(ids == alone[teaches[number]][number] for number, ids in several.items())
    assert any(alone[0][number] != alone[1][number] for number in several)


def test_logits_on_the_teachers_answers_are_those_of_the_member_that_answered(two, tmp_path):
    world, teachers = two
    inputs = labelled(world, teachers, tmp_path) | live(world, teachers)
    phase = TrainingPhase(sequences="teacher", divergence="forward_kl")
    facts, _ = run(make_train, asked(phase, HALVES), inputs, tmp_path, "several")
    assert facts["counts"]["steps"] == 10 and facts["cost"]["teacher_tokens"] == facts["counts"]["read_tokens"]


def test_caches_of_two_teachers_give_each_row_its_own(two, tmp_path):
    world, teachers = two
    caches = []
    for place, teacher in enumerate(teachers):
        stored = {"signal": TOP_K.stored(), "seed": 0, "max_length": 64, "precision": "fp32"}
        caches.append(run(make_cache, stored, {"rows": world["subset"], "teacher": teacher}, tmp_path, f"c{place}")[1])
    signal = TOP_K.identity(FORWARD)
    inputs = {name: world[name] for name in ("subset", "start", "mixture")}
    inputs |= {f"cache:{place}:1": cache for place, cache in enumerate(caches)}
    _, folder = run(make_train, asked(FORWARD, HALVES, signal=signal), inputs, tmp_path, "several")
    single = {"subset": world["subset"], "start": world["start"], "cache:1": caches[1]}
    _, alone = run(make_train, settings(FORWARD, signal=signal), single, tmp_path, "single")
    assert steps_of(folder) != steps_of(alone)
    members = [{"sources": ["other"]}, {"share": 1.0}]
    _, second = run(make_train, asked(FORWARD, members, signal=signal), inputs, tmp_path, "second")
    assert steps_of(second) == steps_of(alone)


def test_a_row_without_a_teacher_is_refused_before_a_step(two, tmp_path):
    world, teachers = two
    with pytest.raises(SettingsError, match="no member teaches the rows of add"):
        run(make_train, asked(FORWARD, [{"sources": ["a"]}, {"sources": ["b"]}]), live(world, teachers), tmp_path, "x")
    assert not (tmp_path / "x" / "log.jsonl").exists()


def test_a_flop_budget_pays_for_what_the_members_read(two, tmp_path):
    world, teachers = two
    budget = {"kind": "flops", "amount": 4e8, "batch_size": 4, "learning_rate": 1e-3}
    found = {}
    for combine in ("by_row", "mean"):
        given = asked(FORWARD, HALVES, combine, budget=budget)
        found[combine], _ = run(make_train, given, live(world, teachers), tmp_path, combine)
        assert 0.8 < found[combine]["cost"]["flops"] / 4e8 < 1.1
    assert found["mean"]["counts"]["steps"] < found["by_row"]["counts"]["steps"]
