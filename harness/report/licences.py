"""Licences: what the stated licences of a model's parts say together, in words a person can check.

Only what publishers state is compared, by its name; no text of a licence is read, and nothing here is legal
advice. What is not stated is reported as not stated, never guessed.

    flag_of("CC-BY-NC-4.0")                                        # "non-commercial"
    judge_licences("Apache-2.0", [("no_robots", "CC-BY-NC-4.0")], None).says   # "not for commercial use"
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NON_COMMERCIAL = "non-commercial"
NOT_STATED = "no licence stated"
NOT_READ = "stated from memory, not read"
HUB_NAMES = {"odc-by-1.0": "odc-by"}
"""Names the Hugging Face hub gives to licences, where it has another than SPDX in lower case."""


@dataclass(frozen=True)
class LicenceVerdict:
    """What stands in the way of using a model, by what is stated."""

    says: str
    """One of `not for commercial use`, `not allowed as stated`, `unclear`, `nothing stated stands against use`."""
    reasons: list[str]
    """Every part that has to do with it, a sentence each."""

    @property
    def clear(self) -> bool:
        """Whether every part states a licence and none restricts use."""
        return not self.reasons


def flag_of(license: str | None) -> str:
    """What to look out for in a stated licence: `non-commercial`, `no licence stated`, `stated from memory, not
    read`, or nothing."""
    # a text such as `not given on the card` is no licence
    if license is None or license.startswith("not "):
        return NOT_STATED
    # the hyphen and the word's end keep out names that merely contain the letters, such as BNC-1.0
    if re.search(r"-NC\b|non-?commercial", license, re.IGNORECASE):
        return NON_COMMERCIAL
    return NOT_READ if "from memory" in license else ""


def judge_licences(
    student: str | None, sources: Iterable[tuple[str, str | None]], teacher: Mapping[str, Any] | None
) -> LicenceVerdict:
    """What the licences of a student's weights, its rows (source, licence) and its teacher say together.

    `teacher`: `name`, `license`, `distillation_allowed` and `acknowledge_license`, or `members` with these; null where
    it has no teacher.
    """
    named: dict[str, list[str]] = {}
    for source, license in sources:
        named.setdefault(flag_of(license), []).append(source)
    telling = [flag for flag in (NON_COMMERCIAL, NOT_STATED, NOT_READ) if flag in named]
    reasons = [f"data, {flag}: {', '.join(named[flag])}" for flag in telling]
    flags = [flag for flag in named if flag]
    if student_flag := flag_of(student):
        reasons.append(f"student's start weights: {student_flag}")
        flags.append(student_flag)
    forbidden = False
    for one in teachers_in(teacher):
        if teacher_flag := flag_of(one["license"]):
            reasons.append(f"teacher {one['name']}: {teacher_flag}")
            flags.append(teacher_flag)
        if one["distillation_allowed"] == "no":
            forbidden = True
            reasons.append(f"teacher {one['name']}: its licence forbids training on its outputs; acknowledged")
        if one["distillation_allowed"] == "unknown":
            flags.append(NOT_STATED)
            reasons.append(f"teacher {one['name']}: whether its licence allows distillation is unknown")
    if forbidden:
        # the gravest finding is the verdict; the reasons list all of them
        return LicenceVerdict("not allowed as stated", reasons)
    if NON_COMMERCIAL in flags:
        return LicenceVerdict("not for commercial use", reasons)
    return LicenceVerdict("unclear" if flags else "nothing stated stands against use", reasons)


def teachers_in(teacher: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The teachers that a receipt's `teacher` has: none, itself, or its members."""
    if teacher is None:
        return []
    return teacher.get("members") or [teacher]


def hub_license(student: str | None, verdict: LicenceVerdict) -> dict[str, str]:
    """The `license` of a model card: the start weights' where all is clear, else `other` with the verdict as its
    name, or `unknown` where none is stated."""
    if student is None:
        return {"license": "unknown"}
    # the hub takes one licence for a model; a data source or teacher that restricts use goes before the weights' own
    if not verdict.clear:
        return {"license": "other", "license_name": verdict.says.replace(" ", "-"), "license_link": "RECEIPT.md"}
    # a text that is no name of a licence stands in the card's table, where it is shown as text
    name = re.sub(r"[^\w.+-]+", "-", student.lower()).strip("-") or "unknown"
    return {"license": HUB_NAMES.get(name, name)}
