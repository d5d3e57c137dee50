"""Licences: only what is stated is compared, and what nobody stated is told as such."""

import pytest

from harness.data.corpora.tulu3 import SOURCES
from harness.report.licences import flag_of, hub_license, judge_licences

FREE = {"name": "big", "license": "Apache-2.0", "distillation_allowed": "yes", "acknowledge_license": False}


@pytest.mark.parametrize(
    ("license", "flag"),
    [
        ("Apache-2.0", ""),
        ("ODC-BY-1.0", ""),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("Somebody's Non-Commercial License", "non-commercial"),
        (None, "no licence stated"),
        ("not given on the card", "no licence stated"),
        ("CC-BY-4.0 (from memory, not read)", "stated from memory, not read"),
        ("BNC-1.0", ""),  # `-NC` is a part of a name, not two letters in it
    ],
)
def test_a_licence_is_flagged_by_what_is_stated(license, flag):
    assert flag_of(license) == flag


def test_the_nineteen_sources_of_tulu_3_are_flagged_as_their_card_says():
    flags = {name.rpartition("/")[2]: flag_of(source.license) for name, source in SOURCES.items()}
    assert [name for name, flag in flags.items() if flag == "non-commercial"] == ["no_robots_converted"]
    unstated = {name for name, flag in flags.items() if flag == "no licence stated"}
    assert unstated == {"flan_v2_converted", "tulu_v3.9_open_math_2_gsm8k_50k"}


def test_one_non_commercial_source_binds_the_whole_model():
    verdict = judge_licences("Apache-2.0", [("open", "MIT"), ("closed", "CC-BY-NC-4.0")], FREE)
    assert verdict.says == "not for commercial use" and verdict.reasons == ["data, non-commercial: closed"]
    assert hub_license("Apache-2.0", verdict)["license"] == "other"


def test_what_is_unknown_is_unclear_and_never_free():
    for student, source, teacher in (
        (None, "MIT", FREE),
        ("MIT", None, FREE),
        ("MIT", "MIT", FREE | {"license": None}),
    ):
        assert judge_licences(student, [("rows", source)], teacher).says == "unclear"
    silent = judge_licences("MIT", [("rows", "MIT")], FREE | {"distillation_allowed": "unknown"})
    assert silent.says == "unclear" and "whether its licence allows distillation is unknown" in silent.reasons[0]
    assert hub_license(None, silent) == {"license": "unknown"}


def test_a_teacher_that_forbids_it_is_told_even_where_that_was_acknowledged():
    verdict = judge_licences(
        "MIT", [("rows", "MIT")], FREE | {"distillation_allowed": "no", "acknowledge_license": True}
    )
    assert verdict.says == "not allowed as stated" and "forbids" in verdict.reasons[0]


def test_where_all_is_stated_and_free_the_card_takes_the_start_weights_licence():
    verdict = judge_licences("Apache-2.0", [("rows", "MIT")], None)
    assert (verdict.says, verdict.clear) == ("nothing stated stands against use", True)
    assert hub_license("Apache-2.0", verdict) == {"license": "apache-2.0"}
    assert hub_license("ODC-BY-1.0", verdict) == {"license": "odc-by"}


def test_every_one_of_several_teachers_counts():
    closed = {
        "name": "closed",
        "license": "CC-BY-NC-4.0",
        "distillation_allowed": "unknown",
        "acknowledge_license": False,
    }
    several = {"name": "big+closed", "combine": "mean", "members": [FREE, closed]}
    verdict = judge_licences("MIT", [("rows", "MIT")], several)
    assert verdict.says == "not for commercial use"
    assert verdict.reasons == [
        "teacher closed: non-commercial",
        "teacher closed: whether its licence allows distillation is unknown",
    ]
    assert judge_licences("MIT", [("rows", "MIT")], several | {"members": [FREE, FREE]}).clear
