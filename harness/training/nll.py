"""Likelihood: the mean NLL of a model on rows, the one measure under which all objectives are compared in training.

`evals/corpus/heldout.py` scores held-out rows token by token for the record; this is the quick mean over a cell's
own validation rows.

    nats, tokens = mean_nll(model, Rows(validation))
    nats, tokens = served_nll(teacher, Rows(validation))      # the same of a model served over HTTP
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from harness.config.recipe import TrainingPhase
from harness.data.sequences import Row, Rows, collate
from harness.models.generate import evaluating
from harness.models.logits import scored_positions
from harness.teachers.teacher import ServedTeacher
from harness.training.losses.objectives import objective_for

TOKENS_AT_ONCE = 2**16
"""Padded tokens of one batch: 64 rows of 1,024. Longer rows come in smaller batches, so that memory is bounded."""


def mean_nll(model: PreTrainedModel, rows: Sequence[Row] | Rows, batch_size: int = 64) -> tuple[float, int]:
    """Mean negative log-likelihood (nats per scored token) over rows, and how many tokens that is."""
    total, count = 0.0, 0
    objective = objective_for(TrainingPhase(), None, model.config.get_text_config().vocab_size)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            # rows come shortest first, so the last is the longest of its batch
            size = max(1, TOKENS_AT_ONCE // max(1, len(rows[chosen[-1]].input_ids)))
            for first in range(0, len(chosen), size):
                batch = collate([rows[index] for index in chosen[first : first + size]], pad_id=0)
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                found = objective.compare(model, batch)
                total, count = total + found.sum.item(), count + found.count
    return total / max(count, 1), count


def served_nll(teacher: ServedTeacher, rows: Sequence[Row] | Rows) -> tuple[float, int]:
    """`mean_nll` of a model served over HTTP. Raises SettingsError where the server cannot score given tokens."""
    total, count = 0.0, 0
    for row, scores in zip(rows, teacher.score([row.input_ids.tolist() for row in rows], top_k=0), strict=True):
        # (T - 1,): entry t of the scores is about token t + 1, as logits at t are
        scored = scored_positions(collate([row], pad_id=0)["labels"])[0, :-1].numpy()
        total, count = total - float(scores.actual[scored].sum(dtype="float64")), count + int(scored.sum())
    return total / max(count, 1), count
