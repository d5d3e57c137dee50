"""The table of signals and divergences: what it says, what is refused, and that both are one."""

import pytest

from harness.config.checks import SettingsError
from harness.config.recipe import HIDDEN, TOKEN_DIVERGENCES, TrainingPhase
from harness.config.teacher_signal import POLICY_GRADIENT, SUPPORTED, TAILS, Signal, check_signal

SIGNALS = [Signal(), *(Signal(kind="top_k", tail=tail) for tail in TAILS), Signal(kind="sampled")]


def test_the_table_has_every_signal_and_every_divergence():
    columns = {signal.column() for signal in SIGNALS} | {Signal(tail=tail).column(served=True) for tail in TAILS}
    assert columns == set(SUPPORTED)
    assert all(set(row) == {*TOKEN_DIVERGENCES, POLICY_GRADIENT} for row in SUPPORTED.values())


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.column())
@pytest.mark.parametrize("divergence", TOKEN_DIVERGENCES)
def test_what_the_table_refuses_is_refused_in_one_sentence_with_its_reason(signal, divergence):
    support, phase = SUPPORTED[signal.column()][divergence], TrainingPhase(divergence=divergence)
    if support.works:
        return check_signal(signal, phase)
    with pytest.raises(SettingsError) as refused:
        check_signal(signal, phase)
    said = str(refused.value)
    assert divergence in said and support.why in said and "\n" not in said
    ways_out = said.rstrip(".").rpartition("; use ")[2].split(", or ")
    named = [Signal(**dict(word.removeprefix("signal.").split("=") for word in words.split())) for words in ways_out]
    able = [column for column, row in SUPPORTED.items() if row[divergence].works and not column.startswith("served")]
    assert [one.column() for one in named] == able


def test_the_pairs_that_methods_rule_out_are_ruled_out():
    assert not SUPPORTED["top_k[zero]"]["reverse_kl"].works
    assert [name for name in TOKEN_DIVERGENCES if SUPPORTED["sampled"][name].works] == ["forward_kl"]
    assert all(SUPPORTED["live"][name].works and SUPPORTED["top_k[tail]"][name].works for name in TOKEN_DIVERGENCES)


@pytest.mark.parametrize("signal", SIGNALS[1:], ids=lambda signal: signal.column())
def test_another_temperature_is_reached_on_the_kept_tokens_alone(signal):
    phase = TrainingPhase(divergence="forward_kl", divergence_temperature=2.0)
    if signal.tail == "renormalise":
        return check_signal(signal, phase)
    with pytest.raises(SettingsError, match=r"method\.divergence_temperature=2.0 .*temperature 1 only"):
        check_signal(signal, phase)


@pytest.mark.parametrize(
    "phase",
    [
        TrainingPhase(sequences="student", student_share=0.5, divergence="forward_kl"),
        TrainingPhase(sequences="interleaved", divergence="forward_kl"),
        TrainingPhase(sequences="mixed", divergence="forward_kl"),
        TrainingPhase(divergence="forward_kl", control="shuffled"),
        TrainingPhase(divergence=HIDDEN[0]),
        TrainingPhase(divergence="uld"),
    ],
    ids=lambda phase: f"{phase.sequences}-{phase.divergence}-{phase.control}",
)
def test_phases_that_need_the_teacher_itself_are_refused_a_cache(phase):
    assert check_signal(Signal(), phase) is None, "a live teacher gives every signal"
    for signal in SIGNALS[1:]:
        with pytest.raises(SettingsError, match=r"signal.kind=live"):
            check_signal(signal, phase)


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.column())
def test_a_signal_is_checked_only_where_the_phase_in_normal_form_reads_the_teachers_logits(signal):
    never, gold, own = (
        TrainingPhase(),
        TrainingPhase(sequences="student", student_share=0.0, divergence="forward_kl"),
        TrainingPhase(sequences="student", student_share=0.1, divergence="forward_kl"),
    )
    refused = []
    for phase in (never, gold, own):
        try:
            check_signal(signal, phase)
        except SettingsError:
            refused.append(phase)
    # without a share of its own text the phase is forward KL on gold, which every signal allows
    assert refused == ([] if signal.kind == "live" else [own])


def test_a_value_that_the_kind_does_not_read_is_no_identity_and_the_tail_is_not_stored():
    phase = TrainingPhase(divergence="forward_kl")
    assert Signal(top_k=5, samples=9).identity(phase) is None
    assert Signal(kind="top_k").identity(TrainingPhase()) is None, "cross-entropy reads no teacher"
    assert Signal(kind="sampled", top_k=5).identity(phase) == Signal(kind="sampled").identity(phase)
    zero, tail = Signal(kind="top_k", tail="zero"), Signal(kind="top_k")
    assert zero.stored() == tail.stored() and zero.identity(phase) != tail.identity(phase)
    asked = {"kind": "live", "top_k": 5, "tail": "tail"}
    assert Signal(top_k=5).identity(phase, served=True) == asked, "a server names so many tokens"


@pytest.mark.parametrize(
    "values",
    [{"kind": "topk"}, {"tail": "none"}, {"top_k": 0}, {"top_k": 1.5}, {"samples": 0}, {"samples": 256}],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(SettingsError, match=f"signal.{next(iter(values))}="):
        Signal(**values)
