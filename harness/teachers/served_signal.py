"""Served signal: what a model behind an OpenAI-compatible server says about any text, at its scored positions.

With `prompt_logprobs` a server scores a row that it is given, so it teaches on the student's own text too. It names
its top-k tokens, and the row's own token, whose log-probability is always among them; all other tokens are one event.
`stages/logit_cache.py` stores such scores, `ServedSignal` asks for them while the student trains.

    ServedSignal(teacher, student_tokenizer, Signal(top_k=64)).sparse_logits(batch)    # SparseLogits of N positions
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from harness.config.checks import refuse
from harness.config.teacher_signal import Signal
from harness.data.sequences import IGNORED, Rows
from harness.teachers.completions_client import RowScores
from harness.teachers.reading import Reading
from harness.teachers.sparse_logits import SparseLogits, top_k_named
from harness.teachers.teacher import ServedTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ServedSignal:
    """A sparse signal for any text of the student: top-k tokens, the text's own token, and the tail."""

    gives: Literal["sparse_logits"] = "sparse_logits"
    parameters = 0

    def __init__(
        self,
        teacher: ServedTeacher,
        student: "PreTrainedTokenizerBase",
        signal: Signal,
        own_rows: Sequence[Rows] = (),
        rendering: str = "own",
        own_token_alone: bool = False,
    ) -> None:
        """`signal` has `top_k` and `tail`; with `own_token_alone` no other token is asked for. See `Reading` for the
        others.

        Raises SettingsError where the tokenizers share no vocabulary, or the templates differ and no rows are given.
        """
        self.teacher, self.signal = teacher, signal
        self.asked = 0 if own_token_alone else signal.top_k
        self.reading = Reading(student, teacher.tokenizer, own_rows, rendering)

    def sparse_logits(self, batch: Mapping[str, torch.Tensor]) -> SparseLogits:
        """Sparse logits at the N scored positions of `collate`'s micro-batch, with `own` and `outside`.

        Raises SettingsError where the server fails or cannot score given tokens.
        """
        ids, mask, labels = (
            batch.get(f"teacher_{name}", batch[name]).cpu().numpy()
            for name in ("input_ids", "attention_mask", "labels")
        )
        lengths = mask.sum(1)  # (B,)
        texts = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        scored = [row[1:length] != IGNORED for row, length in zip(labels, lengths, strict=True)]  # (T - 1,) each
        return scored_by_server(self.teacher, texts, scored, self.asked, self.reading, own_token=True)


def scored_by_server(
    teacher: ServedTeacher,
    texts: Sequence[list[int]],
    scored: Sequence[np.ndarray],
    top_k: int,
    reading: Reading,
    own_token: bool,
) -> SparseLogits:
    """A server's sparse logits at the scored positions of token sequences, in the student's tokens.

    `texts` are in the teacher's ids; `scored`, bool (T - 1,) each, says which next tokens are scored: entry t is about
    token t + 1, as logits at t are. With `own_token` the text's own token is named too where it is not among the top k.
    Raises SettingsError where the server fails, names fewer tokens, or a token that its declared tokenizer lacks.
    """
    known = len(teacher.tokenizer)
    scores: list[RowScores] = teacher.score(texts, top_k)
    ids = np.concatenate([one.ids[where] for one, where in zip(scores, scored, strict=True)])  # (N, K)
    logprobs = np.concatenate([one.logprobs[where] for one, where in zip(scores, scored, strict=True)])  # (N, K)
    own_logprobs = np.concatenate([one.actual[where] for one, where in zip(scores, scored, strict=True)])  # (N,)
    own_ids = np.concatenate(
        [np.asarray(text[1:], dtype=np.int64)[where] for text, where in zip(texts, scored, strict=True)]
    )  # (N,)
    if ids.max(initial=0) >= known:
        raise refuse(
            "teacher.tokenizer",
            str(teacher.tokenizer.name_or_path),
            f"it has {known} tokens and the server at {teacher.server.endpoint.shown} names token {ids.max()}",
            "give the tokenizer of the model that is served",
        )
    if own_token:
        named = (ids == own_ids[:, None]).any(1)  # (N,)
        if not named.all():
            # one place more, unused where the own token is among the top k
            ids = np.concatenate([ids, np.where(named, -1, own_ids)[:, None].astype(ids.dtype)], axis=1)
            last = np.where(named, -np.inf, own_logprobs).astype(logprobs.dtype)
            logprobs = np.concatenate([logprobs, last[:, None]], axis=1)
    found = reading.shared.of_sparse(top_k_named(ids, logprobs, known))
    return replace(found, own=torch.from_numpy(own_logprobs))
