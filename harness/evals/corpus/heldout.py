"""Held-out NLL: how likely a model finds the corpus's own answers, and the true ones where they are known.

Nats per token over every assistant turn with its end-of-turn token, on the same ids for every model that
shares a tokenizer. Under noisy labels a model that is right has the higher NLL of the labels, and a model that
learned its teacher's knowledge the lower NLL of the truth; so both are reported, and `verified.py` (accuracy) is
the primary metric. For the truth (the first, where several are right) the last answer alone is replaced and scored.
Where a template rewrites earlier turns, each turn is scored after its own prompt.

    NLL = - sum_t log p(y_t | y_<t, prompt) / number of t
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.data.chat import Rendered, render_rows
from harness.data.sequences import Row, collate, longest_first
from harness.data.truth import alternatives
from harness.evals import HeldoutRow, Item, Options, Score, Scored, scores_by_source
from harness.models.generate import evaluating
from harness.models.logits import logits_at, scored_positions, scored_tokens
from harness.runtime import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METRICS = ("nll",)
METRICS_OF_TRUTH = ("nll_truth",)
UNLIMITED = 1 << 30


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[HeldoutRow],
    options: Options,
) -> Scored:
    """NLL of every row's answers, and of its truth where known; rows longer than the model's context are cut.

    Raises SettingsError where the tokenizer's chat template cannot render a row (see `data.chat.render_rows`).
    """
    config: Any = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or UNLIMITED
    labels = render_rows(tokenizer, [row.messages for row in rows], context)
    known = [index for index, row in enumerate(rows) if row.truth is not None]
    truths = [
        _last_turn(rendered[-1])
        for rendered in render_rows(
            tokenizer,
            [
                [*rows[index].messages[:-1], {"role": "assistant", "content": alternatives(rows[index].truth or "")[0]}]
                for index in known
            ],
            context,
        )
    ]
    # Most labels are right: a truth that equals the label, in a row of one answer, is scored once for both.
    fresh = [place for place, index in enumerate(known) if [truths[place]] != labels[index]]
    parts = [rendered for of_row in labels for rendered in of_row]
    nats = iter(nll_sums(model, parts + [truths[place] for place in fresh], options.batch_size))
    sums = [sum(next(nats) for _ in of_row) for of_row in labels]
    by_truth = dict(zip(fresh, nats, strict=True))
    truth_of = {index: (by_truth.get(place, sums[index]), truths[place]) for place, index in enumerate(known)}
    items = []
    for index, row in enumerate(rows):
        item = Item(
            "heldout",
            row.id,
            row.source,
            row.prompt_hash,
            target=row.messages[-1]["content"],
            nll=sums[index],
            nll_tokens=sum(rendered.response_tokens for rendered in labels[index]),
            truncated=any(rendered.truncated for rendered in labels[index]),
        )
        if index in truth_of:
            nll_truth, rendered = truth_of[index]
            item = replace(item, nll_truth=nll_truth, nll_truth_tokens=rendered.response_tokens)
        items.append(item)
    # what was computed: a truth that equals its label is counted once
    read = sum(len(rendered.input_ids) for rendered in [*parts, *(truths[place] for place in fresh)])
    counts = {
        "truncated": sum(item.truncated for item in items),
        "without_scored_tokens": sum(not item.nll_tokens for item in items),
    }
    return Scored(items, read_tokens=read, counts=counts)


def summary(items: Sequence[Item]) -> list[Score]:
    """`nll` and, where truth is known, `nll_truth`: nats per token, for `all` and each source."""
    return [
        *scores_by_source("heldout", "nll", items, lambda item: _pair(item.nll, item.nll_tokens)),
        *scores_by_source("heldout", "nll_truth", items, lambda item: _pair(item.nll_truth, item.nll_truth_tokens)),
    ]


def nll_sums(model: "PreTrainedModel", rendered: Sequence[Rendered], batch_size: int) -> list[float]:
    """Summed negative log-likelihood (nats) of each sequence's spans, in order; 0 where nothing is scored."""
    sums = [0.0] * len(rendered)
    waiting = [index for index, row in enumerate(rendered) if row.response_tokens]
    scored = 0
    with evaluating(model), torch.no_grad():
        for chosen in longest_first(waiting, lambda index: len(rendered[index].input_ids), batch_size):
            for index, nats in zip(chosen, _batch(model, [rendered[i] for i in chosen]), strict=True):
                sums[index] = nats
            scored += len(chosen)
            progress.report(scored, len(waiting), note="held-out NLL")
    return sums


def _batch(model: "PreTrainedModel", rendered: list[Rendered]) -> list[float]:
    """Summed negative log-likelihood (nats) of each of B sequences; N scored positions in all, V tokens."""
    rows = [Row(np.asarray(row.input_ids, dtype=np.int32), row.starts, row.ends) for row in rendered]
    batch = {name: tensor.to(model.device) for name, tensor in collate(rows, pad_id=0).items()}  # each (B, T)
    scored = scored_positions(batch["labels"])  # (B, T)
    logits = logits_at(model, batch["input_ids"], batch["attention_mask"], scored).float()  # (N, V)
    nats = torch.nn.functional.cross_entropy(logits, scored_tokens(batch["labels"]), reduction="none")  # (N,)
    row_of = scored.nonzero()[:, 0]  # (N,)
    # float64, so that sums over long rows keep their digits
    sums = torch.zeros(len(rows), dtype=torch.float64, device=nats.device)  # (B,)
    return sums.index_add_(0, row_of, nats.double()).tolist()


def _last_turn(rendered: Rendered) -> Rendered:
    """The same sequence with the last turn alone scored; a truncated one scores nothing."""
    whole = not rendered.truncated
    return replace(rendered, starts=rendered.starts[-1:] if whole else [], ends=rendered.ends[-1:] if whole else [])


def _pair(nats: float | None, tokens: int | None) -> tuple[float, float] | None:
    return None if nats is None or not tokens else (nats, float(tokens))
