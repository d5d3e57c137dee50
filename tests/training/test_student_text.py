"""Sequences: what a step is made of does not depend on how it is split, and an adaptive share follows validation."""

import json

import pytest
import torch

from harness.config.checks import SettingsError
from harness.config.machine import Machine
from harness.config.recipe import TrainingPhase
from harness.data.sequences import Rows, draw_seed, prompt_of, visits
from harness.models.generate import generate
from harness.models.speculative import generate_speculatively
from harness.teachers.signals import LiveTeacher
from harness.training.nll import mean_nll
from harness.training.student_text import Validation, sequences_for
from harness.training.trainer import TrainingData, TrainingSettings, fit
from tests.doubles import tiny_llama
from tests.training.test_trainer import BUDGET, TOKENIZER, dataset

ADAPTIVE = TrainingPhase(sequences="student", student_share=1.0, adaptive=True, replay_rows=8, divergence="forward_kl")
STUDENT = TrainingPhase(sequences="student", student_share=1.0, divergence="reverse_kl", sampling_top_p=0.8)
INTERLEAVED = TrainingPhase(
    sequences="interleaved", divergence="forward_kl", accepted_top_k=60, sampling_temperature=1.0, proposed_tokens=3
)
MODEL = tiny_llama()
NEW = 4


def teacher():
    return LiveTeacher(tiny_llama(seed=1), TOKENIZER, TOKENIZER)


def texts(stage, validation=None, steps=40, seed=0):
    return sequences_for(stage, MODEL, TOKENIZER, teacher(), seed, NEW, steps, validation)


def groups(step=0, sizes=(4,)):
    rows, position, found = Rows(dataset()), 4 * step, []
    for size in sizes:
        found.append([(place, rows[place % 12]) for place in range(position, position + size)])
        position += size
    return found


def flat(text):
    return [row.input_ids.tolist() for group in text.groups for row in group]


def scripted(*losses):
    """A validation whose loss is the next of these, the last one for ever."""
    left = list(losses)
    return Validation(lambda: left.pop(0) if len(left) > 1 else left[0], tokens=100)


def run(tmp_path, stage, steps=20, validation=None, rows=None, model=None, micro=None, **more):
    rows = rows or dataset()
    report = fit(
        model or tiny_llama(),
        TOKENIZER,
        TrainingData(rows, visits(len(rows), steps, 4, seed=0), validation=validation),
        TrainingSettings(BUDGET, stage, Machine(device="cpu", micro_batch_size=micro), seed=0, max_new_tokens=NEW),
        out=tmp_path,
        teacher=teacher(),
        **more,
    )
    return report, [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_the_students_text_has_no_id_beyond_its_tokenizer_where_a_teacher_reads_it():
    """An embedding padded to a larger multiple than the teacher's: such an id was out of the teacher's range."""
    padded = tiny_llama(vocab_size=2 * len(TOKENIZER))
    hot = TrainingPhase(sequences="student", student_share=1.0, divergence="jsd", sampling_temperature=5.0)

    def longest(signal):
        found = sequences_for(hot, padded, TOKENIZER, signal, 0, NEW).rows(0, groups())
        return max(max(ids) for ids in flat(found))

    assert longest(None) >= len(TOKENIZER) > longest(teacher())


@pytest.mark.parametrize("stage", [STUDENT, INTERLEAVED])
def test_micro_batches_leave_a_steps_text_unchanged(stage):
    whole, halves, single = (texts(stage).rows(3, groups(3, sizes)) for sizes in ((4,), (2, 2), (1, 1, 1, 1)))
    assert flat(whole) == flat(halves) == flat(single)
    assert [len(group) for group in halves.groups] == [2, 2]
    assert whole.student_tokens == single.student_tokens and whole.generated == single.generated


def test_student_text_is_generated_at_the_stages_temperature_and_nucleus():
    (visits_of_step,) = groups()
    found = flat(texts(STUDENT).rows(0, [visits_of_step]))
    for (position, row), ids in zip(visits_of_step, found, strict=True):
        seed = draw_seed(0, "student text", position)
        prompt = prompt_of(row, seed)
        assert ids == prompt + generate(MODEL, TOKENIZER, [prompt], NEW, 1.0, [seed], top_p=0.8)[0]


def test_interleaved_text_is_written_at_every_step_and_both_models_reading_is_counted():
    text = texts(INTERLEAVED).rows(7, groups(7))
    (visits_of_step,) = groups(7)
    seeds = [draw_seed(0, "student text", position) for position, _ in visits_of_step]
    prompts = [prompt_of(row, seed) for (_, row), seed in zip(visits_of_step, seeds, strict=True)]
    expected = generate_speculatively(MODEL, tiny_llama(seed=1), TOKENIZER, prompts, NEW, INTERLEAVED, seeds)
    assert flat(text) == [p + a for p, a in zip(prompts, expected.answers, strict=True)]
    assert text.origin == "interleaved" and text.generated == expected.proposed
    assert text.student_tokens == text.teacher_tokens == expected.proposed + sum(map(len, prompts))
    assert text.diagnostics["accepted"] == 1 - expected.replaced / sum(map(len, expected.answers))


def test_skd_trains_on_interleaved_text_alone_and_pays_for_the_teacher_twice(tmp_path):
    report, log = run(tmp_path, INTERLEAVED, steps=3)
    assert [line["sequences"] for line in log] == ["interleaved"] * 3 and 0 < log[0]["accepted"] < 1
    assert report.student_steps == 3 and 12 <= report.trained_tokens <= 12 * NEW
    while_writing = report.teacher_tokens - report.read_tokens
    assert while_writing >= report.generated_tokens + 12 * 2  # every row's prompt has two tokens at least
    size = sum(weight.numel() for weight in MODEL.parameters())
    assert report.teacher_flops == 2 * size * report.teacher_tokens
    assert report.flops == 6 * size * report.read_tokens + 2 * size * while_writing + report.teacher_flops
    assert report.teacher_seconds > 0


class Sheet:
    """A teacher signal that is no model in memory."""

    gives, parameters = "logits", 0

    def logits(self, input_ids, attention_mask, scored):
        raise NotImplementedError


def test_interleaved_text_with_a_teacher_that_is_no_model_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"Sheet.*method=skd"):
        sequences_for(INTERLEAVED, MODEL, TOKENIZER, Sheet(), 0, NEW)
    with pytest.raises(ValueError, match="needs a teacher"):
        sequences_for(INTERLEAVED, MODEL, TOKENIZER, None, 0, NEW)


def test_an_adaptive_share_follows_a_scripted_validation_loss():
    # looked at every 3 of 40 steps; by step 30 the share is 1, so every later step is new or replayed text
    adaptive = texts(ADAPTIVE, scripted(*map(float, range(20))))
    steps = [adaptive.rows(step, groups(step)) for step in range(40)]
    assert [text.diagnostics["phi"] for text in steps] == [min(1.0, round(0.1 * (step // 3), 9)) for step in range(40)]
    assert [text.diagnostics.get("validation_nll") for text in steps[:4]] == [0.0, None, None, 1.0]
    assert all(text.origin == "given" for text in steps[:3])
    assert {text.origin for text in steps} == {"given", "student", "replay"}
    assert {text.origin for text in steps[30:]} <= {"student", "replay"}
    assert steps[1].student_tokens == 0 and steps[3].student_tokens >= 100
    assert adaptive.warnings() == []


def test_replayed_rows_are_rows_the_student_wrote_at_earlier_steps():
    adaptive, written, replayed = texts(ADAPTIVE, scripted(*range(20))), [], 0
    for step in range(40):
        text = adaptive.rows(step, groups(step, (2, 2)))
        if text.origin == "student":
            written = (written + flat(text))[-8:]
        elif text.origin == "replay":
            assert len(written) == 8, "the buffer is full before anything is replayed"
            assert all(ids in written for ids in flat(text)) and list(map(len, text.groups)) == [2, 2]
            replayed += 1
    assert replayed >= 5


def test_an_adaptive_text_restored_from_json_goes_on_as_the_one_that_was_never_stopped():
    straight = texts(ADAPTIVE, scripted(*range(20)))
    for step in range(31):
        straight.rows(step, groups(step))
    resumed = texts(ADAPTIVE, scripted(*range(11, 20)))
    resumed.restore(json.loads(json.dumps(straight.state(), allow_nan=False)))
    for step in range(31, 40):
        one, other = (each.rows(step, groups(step)) for each in (straight, resumed))
        assert (one.origin, one.diagnostics, flat(one)) == (other.origin, other.diagnostics, flat(other))


@pytest.mark.parametrize("stage", [TrainingPhase(), STUDENT, INTERLEAVED])
def test_texts_without_a_memory_have_nothing_to_restore(stage):
    kind = texts(stage)
    assert kind.state() == {} and kind.warnings() == []
    kind.restore({})
    with pytest.raises(AssertionError):
        kind.restore({"phi": 0.1})


def test_distillm_without_validation_rows_is_refused_in_one_sentence(tmp_path):
    for held in (None, Rows(dataset().select([]))):
        with pytest.raises(SettingsError, match=r"method='distillm' cannot be run: .*validation rows; take a larger"):
            run(tmp_path, ADAPTIVE, validation=held)


def test_a_fit_looks_at_its_own_validation_loss_in_eval_mode_and_says_when_the_share_never_moved(tmp_path):
    held, model = Rows(dataset(5)), tiny_llama(dropout=0.5)
    expected = mean_nll(model, held)[0]
    report, log = run(tmp_path, ADAPTIVE, 12, held, model=model.train())
    assert log[0]["validation_nll"] == pytest.approx(expected, rel=1e-6)
    assert log[1]["validation_nll"] != log[0]["validation_nll"], "the model that is trained is the one looked at"
    assert {line["phi"] for line in log} == {0.0} and report.student_steps == 0
    assert [text for text in report.warnings if text.startswith("never activated")]
    looks = sum("validation_nll" in line for line in log)
    size = sum(weight.numel() for weight in model.parameters())
    extra = looks * sum(len(row.input_ids) for row in held)
    assert report.flops == pytest.approx(size * (6 * report.read_tokens + 2 * extra + 2 * report.teacher_tokens))


def test_answers_that_are_all_empty_give_a_loss_of_zero_and_not_of_zero_over_zero(tmp_path):
    model = tiny_llama()
    model.config.max_position_embeddings = 1  # no prompt leaves room for a token
    for stage in (STUDENT, INTERLEAVED):
        report, log = run(tmp_path, stage, 2, model=model)
        assert [line["loss"] for line in log] == [0.0, 0.0] and report.trained_tokens == 0
        assert all(torch.isfinite(weight).all() for weight in model.parameters())
