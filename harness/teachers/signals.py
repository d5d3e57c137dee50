"""Teacher signals: a teacher's next-token distributions at the scored positions of given token ids.

The ids are made elsewhere (`models/generate.py`), what a teacher reads in their place and which of its tokens are
compared is `reading.py`, and the comparison with the student is `training/losses/`. A dense signal gives logits over
the teacher's whole output layer: the live teacher, which can also give hidden states first and the logits of some of
them later (`models/logits.py`). A sparse signal gives top-k or sampled tokens: the cached teacher,
which serves what `logit_cache.py` stored and refuses every other row. The caches' tokenizer, chat template, teacher
and kind of signal are checked when they are opened, each row's number, tokens and scored positions at every look-up.

    teacher = LiveTeacher(load_model(folder), teacher_tokenizer, student_tokenizer)
    teacher.logits(input_ids, attention_mask, scored)      # (N, W), no gradient
    teacher = CachedTeacher([folder], Signal(kind="top_k"), student_tokenizer)
    teacher.sparse_logits(batch)                           # SparseLogits of the batch's N scored positions
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from harness.config.checks import SettingsError
from harness.config.file_hash import file_sha256
from harness.config.teacher_signal import Signal
from harness.data.chat import render
from harness.data.sequences import Rows
from harness.models.files import SERVER, WEIGHTS, local_folder, read_pointer
from harness.models.loading import PROBE, count_parameters, tokenizer_hash
from harness.models.logits import logits_at, logits_from, states_at
from harness.store.fingerprint import differences, fingerprint
from harness.teachers.logit_cache import Shard, batch_hashes, read_meta, sparse_logits_from
from harness.teachers.reading import Reading
from harness.teachers.sparse_logits import SparseLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class DenseSignal(Protocol):
    """A teacher that gives logits over its whole output layer for any text of the student."""

    gives: Literal["logits"]
    """Tells the kinds of signal apart; the objective is chosen by it."""
    parameters: int
    """Parameters of the teacher, for FLOP estimates."""
    reading: Reading
    """What it reads for the student's rows, and which columns of its logits are the student's tokens."""

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Teacher logits (N, W) at the N True positions of `scored` (B, T) in what it reads, without gradient."""
        ...


class SparseSignal(Protocol):
    """A teacher whose distributions are known in part, at the scored positions of rows that were stored before."""

    gives: Literal["sparse_logits"]
    """Tells the kinds of signal apart; the objective is chosen by it."""
    parameters: int
    """Parameters of the teacher, for FLOP estimates."""
    signal: Signal
    """Top-k or sampled tokens, and how the divergence treats the mass outside them."""

    def sparse_logits(self, batch: Mapping[str, torch.Tensor]) -> SparseLogits:
        """Sparse logits at the N scored positions of `collate`'s micro-batch, in the order of `scored_tokens`."""
        ...


class LiveTeacher:
    """A dense signal from a model in memory: frozen, in eval mode, run without gradient."""

    gives: Literal["logits"] = "logits"

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        student_tokenizer: "PreTrainedTokenizerBase",
        device: torch.device | str = "cpu",
        own_rows: Sequence[Rows] = (),
        rendering: str = "own",
    ) -> None:
        """See `Reading` for `own_rows` and `rendering`, and for the SettingsError where the two cannot be paired."""
        self.reading = Reading(student_tokenizer, tokenizer, own_rows, rendering)
        self.model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.parameters = count_parameters(model)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Teacher logits (N, W) at the N True positions of `scored` (B, T), without gradient."""
        self.model.eval()  # a caller may have put a shared module back into train mode
        with torch.no_grad():
            return logits_at(self.model, input_ids, attention_mask, scored)

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, d) at the N True positions of `scored`, from which `logits_from` makes logits."""
        self.model.eval()
        with torch.no_grad():
            return states_at(self.model, input_ids, attention_mask, scored)

    def logits_from(self, states: torch.Tensor) -> torch.Tensor:
        """Teacher logits (n, W) of hidden states (n, d) that `states` gave, without gradient."""
        with torch.no_grad():
            return logits_from(self.model, states)


SAME_IN_ALL = ("signal", "seed", "teacher", "precision", "tokenizer", "chat_template", "vocabulary", "max_length")
"""What caches that are read together must agree on."""


class CachedTeacher:
    """A sparse signal from the rows of one or several caches, found by row number."""

    gives: Literal["sparse_logits"] = "sparse_logits"

    def __init__(
        self,
        folders: Sequence[Path],
        signal: Signal,
        tokenizer: "PreTrainedTokenizerBase",
        teacher: Path | None = None,
    ) -> None:
        """Open caches for a student with this tokenizer; `teacher` is the model folder they must come from.

        Raises SettingsError, naming what differs, unless they are complete, of one teacher and of this signal,
        tokenizer and chat template, with every row in one of them only.
        """
        assert folders, "a cached teacher without a cache"
        metas = [read_meta(folder) for folder in folders]
        first, name = metas[0], str(folders[0])
        # blocks of one teacher are read as one cache; a row served from a cache of another teacher would not be
        # noticed later
        for folder, meta in zip(folders, metas, strict=True):
            other = differences({key: first[key] for key in SAME_IN_ALL}, {key: meta[key] for key in SAME_IN_ALL})
            if other:
                leaf, one, another = other[0]
                raise _refusal(f"{name} and {folder} cannot be read together: {leaf} is {one!r} and {another!r}")
        wanted: dict[str, Any] = {"signal": signal.stored(), "vocabulary": len(tokenizer), **hashes_of(tokenizer)}
        if teacher is not None:
            wanted["teacher"] = teacher_fingerprint(teacher)
        for key, want in wanted.items():
            if first[key] != want:
                raise _refusal(
                    f"{name} is of another {key.replace('_', ' ')}: {_short(first[key])}, not {_short(want)}"
                )
        self.signal: Signal = signal
        self.parameters: int = first["parameters"]
        self.meta: Mapping[str, Any] = first
        self._shards = [
            Shard(folder / "shards" / shard["name"])
            for folder, meta in zip(folders, metas, strict=True)
            for shard in meta["shards"]
        ]
        numbers = np.concatenate([shard.rows for shard in self._shards])  # (rows,)
        # sorted, so that a row is found by binary search, whatever the order of the caches
        self._order = np.argsort(numbers, kind="stable")
        self._numbers = numbers[self._order]
        self._firsts = np.cumsum([0, *(len(shard.rows) for shard in self._shards)])  # (shards + 1,)
        twice = self._numbers[1:][self._numbers[1:] == self._numbers[:-1]]
        if len(twice):
            raise _refusal(f"row {twice[0]} is twice in {', '.join(map(str, folders))}")

    def __len__(self) -> int:
        """Rows that can be served."""
        return len(self._numbers)

    def sparse_logits(self, batch: Mapping[str, torch.Tensor]) -> SparseLogits:
        """What is stored of the scored positions of `collate`'s micro-batch, in the order of `scored_tokens`.

        Raises SettingsError for a row that is not in the caches, or was stored with other tokens or spans.
        """
        places = []
        for number, (tokens, scored) in zip(batch["rows"].tolist(), batch_hashes(batch), strict=True):
            shard, at = self._place(number)
            # the number alone proves nothing: the same row has other tokens at another `max_length` or template
            if shard.tokens_hashes[at] != tokens:
                raise _refusal(f"row {number} was stored with other tokens")
            if shard.scored_hashes[at] != scored:
                raise _refusal(f"row {number} was stored with other scored positions (the spans of its answers)")
            places.append((shard, at))
        return sparse_logits_from(self.meta["signal"], self.meta["vocabulary"], places)

    def _place(self, number: int) -> tuple[Shard, int]:
        found = np.searchsorted(self._numbers, number)
        if found == len(self._numbers) or self._numbers[found] != number:
            what = f"row {number} is not in it" if number >= 0 else "text generated during training is in no cache"
            raise _refusal(f"{len(self)} rows are stored and {what}")
        index = int(self._order[found])
        # `side="right"` passes over empty shards, whose first row is that of the next one
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self._shards[shard], index - int(self._firsts[shard])


def hashes_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """What decides the ids of a rendered row: sha256 of the tokenizer and of a probe its chat template renders."""
    probe = fingerprint(asdict(render(tokenizer, PROBE, 1000)))
    return {"tokenizer": tokenizer_hash(tokenizer), "chat_template": probe}


def teacher_fingerprint(folder: Path) -> str:
    """sha256 over the weights and the config of a model folder, pointers followed.

    Of a hub id, its revision; of a server, its declared model and how it answered the probe. Raises OSError where the
    folder or its files cannot be read.
    """
    if (Path(folder) / SERVER).is_file():
        page = json.loads((Path(folder) / SERVER).read_text())
        return fingerprint({"served_model": page["served_model"], "probe": page["probe"]["sha256"]})
    path, revision = read_pointer(Path(folder))
    local = local_folder(path)
    if local is None:
        return fingerprint({"path": path, "revision": revision})
    files = [file for file in sorted(local.iterdir()) if file.suffix in WEIGHTS or file.name == "config.json"]
    return fingerprint({file.name: file_sha256(file) for file in files})


def _refusal(what: str) -> SettingsError:
    return SettingsError(f"the cached teacher cannot be used: {what}; make the cache again for these rows and models.")


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else repr(value)
