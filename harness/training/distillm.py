"""DistiLLM's adaptive student share and replay buffer, without a model (Ko et al. 2024, arXiv 2402.03898).

The share phi of steps on student-generated sequences starts at 0 and grows by `RISE` whenever the validation loss
has risen by `TOLERANCE` over its reference: the student trains on its own answers once it no longer gains from the
data's. Most such steps replay answers generated earlier. `student_text.py` turns the decision into rows.

    share = AdaptiveShare(most=1.0); share.observe(2.0); share.observe(2.1); share.value      # 0.1
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from harness.config.recipe import CHECKS
from harness.data.sequences import Row
from harness.runtime.processes import process_count, process_rank

RISE = 0.1
"""What the share grows by."""
TOLERANCE = 0.1
"""Nats per token that the validation loss must have risen by."""


class AdaptiveShare:
    """The share phi, as validation losses come in (section 3.2 and the authors' `finetune.py`)."""

    def __init__(self, most: float = 1.0) -> None:
        self.most, self.value = most, 0.0
        self.reference: float | None = None
        """The first loss, then the loss at the latest rise; None before the first."""

    def observe(self, loss: float) -> None:
        """Take in a validation loss, nats per token; the first one is the reference."""
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + TOLERANCE:
            self.value, self.reference = min(self.most, round(self.value + RISE, 9)), loss

    def decide(self, uniform: float, done: float, full: bool) -> str:
        """What a step trains on: `student` (generate and store), `replay` or `given`.

        `uniform` is the step's number in [0, 1), `done` the share of the stage's steps taken, `full` whether
        the buffer is.
        """
        if uniform < self.value * (1 - done) or (uniform < self.value and not full):
            return "student"
        return "replay" if uniform < self.value else "given"


def check_every(steps: int) -> int:
    """Steps between two evaluations of the validation loss, so that a stage of enough steps has at least `CHECKS`."""
    return max(1, (steps - 1) // CHECKS)


def of_all_processes(groups: list[list[Row]]) -> list[Row]:
    """The rows of a step's micro-batches in every process, in the order one process alone would visit them."""
    if process_count() == 1:
        return [row for group in groups for row in group]
    from accelerate.utils import gather_object

    gathered = gather_object([groups])  # processes take a micro-batch each, in turns
    return [row for turn in zip(*gathered, strict=True) for group in turn for row in group]


def own_share(rows: list[Row], groups: Sequence[Sequence[Any]]) -> list[Row]:
    """Of such rows those for this process's micro-batches."""
    found: list[Row] = []
    turn = len(rows) // len(groups)
    for number, group in enumerate(groups):
        first = number * turn + process_rank() * len(group)
        found += rows[first : first + len(group)]
    return found


def computed_by_rank_0(loss: Callable[[], float], by_all: bool) -> float:
    """A loss that rank 0 computes and broadcasts, so that all processes take the same decision from it.

    `by_all`: all processes have to compute it, since an FSDP-sharded model is gathered for it.
    """
    if process_count() == 1:
        return loss()
    from accelerate.utils import broadcast_object_list

    found = [loss() if by_all or process_rank() == 0 else 0.0]
    broadcast_object_list(found)
    return found[0]


class ReplayBuffer:
    """The latest `most` rows that the student generated; a full buffer drops its oldest."""

    def __init__(self, most: int) -> None:
        self._rows: deque[Row] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether the next row takes the place of an older one."""
        return len(self._rows) == self._rows.maxlen

    def add(self, rows: Iterable[Row]) -> None:
        """Store new rows."""
        self._rows.extend(rows)

    def draw(self, count: int, seed: int) -> list[Row]:
        """`count` stored rows, each at most once unless there are fewer."""
        assert self._rows, "nothing was stored yet"
        chosen = np.random.default_rng(seed).choice(len(self._rows), count, replace=count > len(self._rows))
        return [self._rows[place] for place in chosen]

    def state(self) -> list[dict[str, Any]]:
        """The stored rows, oldest first, as plain JSON types."""
        return [
            {
                "input_ids": row.input_ids.tolist(),
                "starts": list(row.starts),
                "ends": list(row.ends),
                "turn": row.turn,
                "source": row.source,
            }
            for row in self._rows
        ]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Hold exactly the rows of a `state`."""
        self._rows.clear()
        self.add(Row(**{**row, "input_ids": np.asarray(row["input_ids"], dtype=np.int32)}) for row in state)
