"""Controls: teachers that must not help, put where a real one would be.

A gain that survives them is regularisation, or the marginal distribution of the answers, and not what
the teacher knows about a row. `seq_kd` deals whole answers to other rows where its labels are read; here it
is distributions that are dealt.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.sequences import draw_seed

if TYPE_CHECKING:
    from harness.data.sequences import Rows


def giver(batch: dict[str, torch.Tensor], count: int, seed: int) -> torch.Tensor:
    """Whose distribution each of a micro-batch's `count` scored positions is given, int64 (count,).

    One seeded cycle through the positions, of all rows of the micro-batch together: every distribution is
    given once and none to its own position. The draw depends on the seed and on the token ids of the
    micro-batch and on no history, so a resumed run deals the same. What is dealt stays inside the
    micro-batch, the only distributions at hand, so cutting a step into other micro-batches deals to others;
    a single position keeps its own.
    """
    ids = batch["input_ids"]
    draw = np.random.default_rng(draw_seed(seed, "dealt", *ids.shape, ids.cpu().numpy().tobytes().hex()))
    cycle = draw.permutation(count)
    found = np.empty_like(cycle)
    found[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(found).to(ids.device)


def unigram_logprobs(rows: "Rows", vocabulary: int) -> torch.Tensor:
    """Log-probabilities (V,) of a token anywhere in an answer: counts of the rows' scored tokens, plus one each."""
    counts = np.ones(vocabulary)
    for row in rows:
        for start, end in zip(row.starts, row.ends, strict=True):
            np.add.at(counts, row.input_ids[max(start, 1) : end], 1)
    return torch.from_numpy(np.log(counts / counts.sum())).float()
