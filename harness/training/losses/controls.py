"""Controls: teachers that carry no information about a row, put where a real one would be.

A gain that survives them is regularisation, or the marginal distribution of the answers, and not what the teacher
knows about a row. The permuted teacher gives each position another position's distribution (for `seq_kd` whole
answers are permuted, in `stages/answers.py`); the unigram teacher gives one distribution everywhere.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.sequences import draw_seed

if TYPE_CHECKING:
    from harness.data.sequences import Rows


def permutation(batch: dict[str, torch.Tensor], count: int, seed: int) -> torch.Tensor:
    """For each of a micro-batch's `count` scored positions, the position whose distribution it gets, int64 (count,).

    One seeded cycle through the positions of all rows of the micro-batch: every distribution is used once and none
    at its own position; a single position keeps its own. The draw depends on the seed and on the micro-batch's token
    ids, not on earlier draws, so a resumed run permutes alike. Distributions stay inside the micro-batch, the only
    ones at hand, so another micro-batch size gives another permutation.
    """
    ids = batch["input_ids"]  # (B, T)
    draw = np.random.default_rng(draw_seed(seed, "dealt", *ids.shape, ids.cpu().numpy().tobytes().hex()))
    cycle = draw.permutation(count)  # (count,)
    found = np.empty_like(cycle)
    found[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(found).to(ids.device)


def unigram_logprobs(rows: "Rows", vocabulary: int) -> torch.Tensor:
    """Log-probabilities (V,), fp32, of a token anywhere in an answer: counts of the rows' scored tokens, plus one."""
    counts = np.ones(vocabulary)
    for row in rows:
        for start, end in zip(row.starts, row.ends, strict=True):
            # the token at position 0 is never scored: nothing predicts it
            np.add.at(counts, row.input_ids[max(start, 1) : end], 1)
    return torch.from_numpy(np.log(counts / counts.sum())).float()
