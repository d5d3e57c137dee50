"""Several teachers of one student: which of them teaches a row, and their distributions at its scored positions.

`by_row` gives each row to one member: the first whose `sources` has the row's source, else one of the members without
`sources`, drawn by share. The draw is seeded by the row's id alone, so a row keeps its teacher in every fraction,
budget and order, and labels and caches of blocks stay reusable. Text that the student generates is taught by the
member of the row whose prompt it answers. `mean` gives every row to all members, and compares the student with the
mean of their probabilities, weighted by share (Bucila et al. 2006).

Each member has a `Reading` of its own, so members may have other chat templates and added tokens.

    teaches = Assignment(composition["members"], mixture)
    teaches.of(np.array([0, 7]))                      # array([1, 0]): the members' places
    SeveralTeachers([one, other], ["weak", "strong"], [0.5, 0.5], teaches).reading.tensors(rows, pad_id=0)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch

from harness.config.checks import refuse
from harness.config.teacher_signal import Signal
from harness.data.sequences import Row, collate, conversation_of, draw_seed
from harness.models.logits import at_least_fp32, ruled_out
from harness.teachers.logit_cache import batch_hashes, sparse_logits_from
from harness.teachers.signals import CachedTeacher, LiveTeacher
from harness.teachers.sparse_logits import SparseLogits

NAMES = ("input_ids", "attention_mask", "labels")
MEMBER = "teacher_member"
"""In a micro-batch, the member (N,) that teaches each scored position of the student's rows."""


class Assignment:
    """Which of several teachers teaches each row of a mixture."""

    def __init__(self, members: Sequence[Mapping[str, Any]], mixture: Path) -> None:
        """`members`: each has `sources`, or a `share` of the rows of other sources; `mixture`: a published stage.

        Raises OSError where the mixture cannot be read.
        """
        self._first: dict[str, int] = {}
        for place, one in enumerate(members):
            for source in one.get("sources") or ():
                self._first.setdefault(source, place)
        self._open = [place for place, one in enumerate(members) if not one.get("sources")]
        shares = [float(members[place]["share"]) for place in self._open]
        self._bounds = np.cumsum(shares)[:-1]  # the last member takes what rounding leaves
        self._table = pq.read_table(mixture / "train.parquet", columns=["id", "source"])
        self._known: dict[int, int] = {}

    def of(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """The places of the members (n,) that teach rows of these numbers (n,).

        Raises SettingsError where no member teaches a row's source.
        """
        rows = conversation_of(np.asarray(numbers, dtype=np.int64))  # (n,)
        new = [row for row in dict.fromkeys(rows.tolist()) if row not in self._known]
        if new:
            some = self._table.take(new)
            for row, id, source in zip(new, some["id"].to_pylist(), some["source"].to_pylist(), strict=True):
                self._known[row] = self._member(id, source)
        return np.array([self._known[row] for row in rows.tolist()], dtype=np.int64)

    def _member(self, id: str, source: str) -> int:
        if source in self._first:
            return self._first[source]
        if not self._open:
            taught = ", ".join(self._first)
            reason = f"no member teaches the rows of {source}; the members' sources are {taught}"
            raise refuse("teacher.members", f"sources: {taught}", reason, "add a member without sources")
        uniform = draw_seed("teacher of a row", id) / 2**64
        return self._open[int(np.searchsorted(self._bounds, uniform, side="right"))]


@dataclass(frozen=True)
class SharedByAll:
    """The student's tokens that are compared with some or all of several teachers."""

    outside: torch.Tensor | None
    """Tokens that a member does not have, bool (V,); None where all have every token."""

    @property
    def never_generated(self) -> list[int]:
        """The student's tokens that its own text may not have, since one of its teachers cannot score them, by id."""
        return [] if self.outside is None else self.outside.nonzero()[:, 0].tolist()


class SeveralReadings:
    """What several teachers read for a student's rows, by member."""

    def __init__(self, members: Sequence[LiveTeacher], assignment: Assignment | None) -> None:
        """`assignment`: which member reads a row; None: every member reads every row."""
        self.readings = [member.reading for member in members]
        self.assignment = assignment
        outside = [one.shared.outside for one in self.readings if one.shared.outside is not None]  # (V,) each
        self.shared = SharedByAll(torch.stack(outside).any(0) if outside else None)

    def tensors(self, rows: Sequence[Row], pad_id: int) -> dict[str, torch.Tensor]:
        """`collate`'s tensors of what each member reads for these rows, named `teacher<place>_...`.

        A member that reads none has none. With an assignment also `MEMBER`. Raises as `Reading.rows`.
        """
        found: dict[str, torch.Tensor] = {}
        for place, mine in enumerate(self._each(rows)):
            if mine:
                read = collate([one for row in mine for one in self.readings[place].rows(row)], pad_id)
                found |= {f"teacher{place}_{name}": read[name] for name in NAMES}
        if self.assignment is not None:
            counts = [
                sum(max(0, end - max(start, 1)) for start, end in zip(row.starts, row.ends, strict=True))
                for row in rows
            ]
            found[MEMBER] = torch.from_numpy(np.repeat(self._members(rows), counts))  # (N,)
        return found

    def check(self, rows: Iterable[Row]) -> None:
        """Raise SettingsError for the first row with a token that it and its teacher do not share."""
        for reading, mine in zip(self.readings, self._each(list(rows)), strict=True):
            reading.check(mine)

    def read_tokens(self, batch: Mapping[str, torch.Tensor]) -> list[int]:
        """How many tokens of a micro-batch each member reads."""
        masks = [batch.get(f"teacher{place}_attention_mask") for place in range(len(self.readings))]
        return [0 if mask is None else int(mask.sum()) for mask in masks]

    def _each(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of each member, in their order."""
        if self.assignment is None:
            return [list(rows)] * len(self.readings)
        members = self._members(rows)  # (rows,)
        return [[rows[i] for i in np.flatnonzero(members == place).tolist()] for place in range(len(self.readings))]

    def _members(self, rows: Sequence[Row]) -> np.ndarray:
        """The member (rows,) that teaches each row: of generated text, that of the row whose prompt it answers."""
        assert self.assignment is not None
        return self.assignment.of([row.number if row.source is None else row.source for row in rows])


class SeveralTeachers:
    """A dense signal from several models in memory: each row's own teacher, or the mean of all."""

    gives: Literal["logits"] = "logits"

    def __init__(
        self,
        members: Sequence[LiveTeacher],
        names: Sequence[str],
        weights: Sequence[float],
        assignment: Assignment | None = None,
    ) -> None:
        """`weights` sum to 1: a member's weight in the mean, or its part of the rows where there is an assignment."""
        assert len(members) == len(names) == len(weights)
        self.members, self.names, self.weights = list(members), list(names), list(weights)
        self.by_row = assignment is not None
        self.reading = SeveralReadings(members, assignment)
        each = [member.parameters for member in members]
        self.parameters = round(np.dot(each, weights)) if self.by_row else sum(each)
        """Parameters that a token of the student costs, for FLOP estimates: of all members in the mean, on average
        where each row has one."""

    def flops_factor(self, tokens: Sequence[int]) -> int:
        """Parameters times tokens, of the tokens that each member reads."""
        return sum(member.parameters * count for member, count in zip(self.members, tokens, strict=True))

    @property
    def outside_known(self) -> bool:
        """Whether a member may give probability to tokens that are not compared: its own, or padding."""
        return any(
            one.reading.shared.columns is not None
            or one.reading.shared.outside is not None
            or one.model.config.vocab_size > one.reading.shared.size
            for one in self.members
        )

    def own(
        self, logits: Sequence[torch.Tensor | None], which: torch.Tensor, diagnoses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Each position's logits (n, V) by its own member `which` (n,), from the members' logits (n_m, W_m), which are
        those of its own positions in their order.

        And the probability (n,) that the member gives tokens that are not compared, where that is diagnosed and there
        are such tokens; and which of the student's tokens those are, bool (n, V), None where all are compared.
        """
        parts, masses, places = [], [], []
        for place, whole in enumerate(logits):
            if whole is None or not len(whole):
                continue
            shared = self.members[place].reading.shared
            places.append((which == place).nonzero()[:, 0])  # (n_m,)
            parts.append(shared.of_teacher(whole))  # (n_m, V)
            mass = shared.mass_outside(whole) if diagnoses else None  # (n_m,)
            masses.append(torch.zeros_like(parts[-1][:, 0], dtype=torch.float32) if mass is None else mass)
        order = torch.cat(places).argsort()  # (n,)
        found = torch.cat(parts)[order]  # (n, V)
        outside = None
        if self.reading.shared.outside is not None:
            none = torch.zeros_like(self.reading.shared.outside)  # (V,)
            each = [one.shared.outside if one.shared.outside is not None else none for one in self.reading.readings]
            outside = torch.stack(each).to(found.device)[which]  # (n, V)
        return found, torch.cat(masses)[order] if diagnoses and self.outside_known else None, outside

    def mean(
        self, logits: Iterable[torch.Tensor], diagnoses: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Log-probabilities (n, V) of the weighted mean of the members' distributions, from their logits (n, W_m).

        Each distribution is over the tokens that all members share with the student. The other two as in `own`; the
        tokens that are not compared are bool (V,).
        """
        outside, found, mass = self.reading.shared.outside, None, None
        for member, whole, weight in zip(self.members, logits, self.weights, strict=True):
            compared = ruled_out(at_least_fp32(member.reading.shared.of_teacher(whole)), outside)  # (n, V)
            part = torch.log_softmax(compared, -1) + float(np.log(weight))  # (n, V)
            # summed one by one, so that the logits of all members are never held at once
            found = part if found is None else torch.logaddexp(found, part)
            if diagnoses and self.outside_known:
                left = -torch.expm1((compared.logsumexp(-1) - at_least_fp32(whole).logsumexp(-1)).clamp(max=0.0))
                mass = weight * left if mass is None else mass + weight * left  # (n,)
        assert found is not None, "a mean of no member"
        return ruled_out(found, outside), mass, outside


class SeveralCaches:
    """A sparse signal from several teachers' caches: each row from those of its own teacher."""

    gives: Literal["sparse_logits"] = "sparse_logits"

    def __init__(self, members: Sequence[CachedTeacher], assignment: Assignment) -> None:
        self.members, self.assignment = list(members), assignment
        self.signal: Signal = members[0].signal
        self.parameters = max(member.parameters for member in members)

    def sparse_logits(self, batch: Mapping[str, torch.Tensor]) -> SparseLogits:
        """Sparse logits at the N scored positions of `collate`'s micro-batch, in the order of `scored_tokens`.

        Raises as `CachedTeacher.sparse_logits`, and where no member teaches a row's source.
        """
        numbers = batch["rows"].tolist()
        rows = zip(numbers, self.assignment.of(numbers).tolist(), batch_hashes(batch), strict=True)
        places = [self.members[place].found(number, *hashes) for number, place, hashes in rows]
        first = self.members[0].meta
        return sparse_logits_from(first["signal"], first["vocabulary"], places)
