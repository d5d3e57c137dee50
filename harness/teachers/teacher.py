"""Teachers that generate: one protocol for a model in memory and one served over HTTP, opened from a teacher's folder.

A stage calls `answers` and does not know where the teacher runs; prompt tokens and generated tokens are counted. A
teacher's distributions over given ids are in `signals.py`. A server is identified by a probe: its greedy answer to one
fixed prompt is stored by the stage `base`, and compared whenever the server is used.

    teacher = open_teacher(folder, device="cuda", precision="bf16")
    teacher.answers(prompts, max_new_tokens=256, temperature=0.0, seeds=seeds, stop_ids={end})
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.config.checks import refuse
from harness.data.chat import end_of_turn_id, prompt_ids
from harness.models.diverged import TeacherDivergedError
from harness.models.files import SERVER
from harness.models.finite import check_weights
from harness.models.generate import context_of, generate
from harness.models.loading import count_parameters, load_model, load_tokenizer
from harness.teachers.completions_client import CompletionsClient, Probe, RowScores
from harness.teachers.discovery import endpoint_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE_PROMPT = [{"role": "user", "content": "Name three rivers, and say of each where it ends."}]
ROWS_AT_ONCE = 256
ALL_EMPTY = 8
"""Answers of one call from which on it is refused that every one is empty; fewer may be so by chance."""


class GeneratingTeacher(Protocol):
    """A teacher that generates text."""

    tokenizer: "PreTrainedTokenizerBase"
    parameters: int
    """Parameters, for FLOP estimates; 0 for a server, whose size is unknown and whose FLOPs are not counted."""
    spent: Counter[str]
    """Counts of prompt tokens (`read`), generated tokens (`written`), and answers `reencoded` from text."""

    @property
    def warnings(self) -> list[str]:
        """Warnings for the receipt on how the answers were made."""
        ...

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop_ids: Collection[int],
    ) -> list[list[int]]:
        """New token ids for each prompt, in order, the stop token included where it was reached."""
        ...


class LocalTeacher:
    """A model in memory."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model, self.tokenizer = model, tokenizer
        self.parameters = count_parameters(model)
        self.spent: Counter[str] = Counter()

    @property
    def longest_row(self) -> int | None:
        """Tokens of the longest row it can score; None where the model states no limit."""
        return context_of(self.model)

    @property
    def warnings(self) -> list[str]:
        """An empty list."""
        return []

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop_ids: Collection[int],
    ) -> list[list[int]]:
        """New token ids for each prompt; see `generate`."""
        found = generate(
            self.model, self.tokenizer, prompts, max_new_tokens, temperature, seeds, ROWS_AT_ONCE, stop_ids
        )
        self.spent.update(read=sum(map(len, prompts)), written=sum(map(len, found)))
        return found


class ServedTeacher:
    """A model served over HTTP by a completions server; `tokenizer` is the one declared for it."""

    parameters = 0

    def __init__(self, server: CompletionsClient, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.server, self.tokenizer = server, tokenizer
        self.spent: Counter[str] = Counter()
        server.vocabulary = len(tokenizer)
        # without special tokens: the text is a part of a conversation
        server.encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def longest_row(self) -> int | None:
        """Tokens of the longest row it can score, one fewer than its context; None where the server states none."""
        return None if self.server.context is None else self.server.context - 1

    @property
    def warnings(self) -> list[str]:
        """That FLOPs are not counted, and where it applies, that ids were encoded from text."""
        found = [
            f"{self.server.served_model} is served over HTTP and its size is unknown: its FLOPs are not counted, so "
            "compare costs with it by tokens"
        ]
        if self.spent["empty"]:
            found.append(
                f"{self.spent['empty']} answers of {self.server.served_model} are empty, and students are trained on "
                "them; look at the server's log and at the chat template of teacher.tokenizer"
            )
        # text does not say how it was tokenised: the same text may have other ids
        if self.spent["reencoded"]:
            found.append(
                f"{self.spent['reencoded']} answers came as text and were encoded by the declared tokenizer; their "
                "token ids may differ from those that the teacher generated; use a server that returns token ids"
            )
        return found

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        stop_ids: Collection[int],
    ) -> list[list[int]]:
        """New token ids for each prompt; see `CompletionsClient.complete`.

        Raises SettingsError where the server fails, or answers many prompts and all with nothing.
        """
        # the client counts over its whole life, a teacher's answers are counted here call by call
        before = self.server.reencoded
        found = self.server.complete(prompts, max_new_tokens, temperature, seeds, stop_ids)
        self.spent.update(
            read=sum(map(len, prompts)), written=sum(map(len, found)), reencoded=self.server.reencoded - before
        )
        # a prompt that fills the context has no room for an answer, which is not the server's doing
        room = [self.server.context is None or len(prompt) < self.server.context for prompt in prompts]
        empty = [fits and not set(ids) - set(stop_ids) for ids, fits in zip(found, room, strict=True)]
        if len(empty) >= ALL_EMPTY and all(empty):
            raise refuse(
                "teacher.served_model",
                self.server.served_model,
                f"the server at {self.server.endpoint.shown} answers {len(empty)} prompts, and every answer is empty",
                "look at the server's log and at the chat template of teacher.tokenizer",
            )
        if any(empty):
            self.spent.update(empty=sum(empty))
        return found

    def score(self, rows: Sequence[Sequence[int]], top_k: int) -> list[RowScores]:
        """Log-probabilities of the top-k tokens at every position. Raises as `CompletionsClient.score`."""
        return self.server.score(rows, top_k)

    def probe(self) -> Probe:
        """The server's greedy answer to the fixed prompt, rendered by the declared tokenizer.

        Raises SettingsError where the server fails.
        """
        return self.server.probe(prompt_ids(self.tokenizer, PROBE_PROMPT), {end_of_turn_id(self.tokenizer)})

    def check_unchanged(self, stored: Probe) -> None:
        """Raise SettingsError unless the server answers the probe as it did when the stage `base` was made."""
        now = self.probe()
        # not by hash: log-probabilities of one model differ in the last digits between machines
        if not now.agrees(stored):
            raise refuse(
                "teacher.served_model",
                self.server.served_model,
                f"the server at {self.server.endpoint.shown} answers the probe as {now.sha256[:12]} and not as "
                f"{stored.sha256[:12]}, which the store has, so it serves another model now",
                "serve the earlier model, or give the new one a teacher.revision of its own",
            )


def open_teacher(
    folder: Path,
    device: str = "cpu",
    precision: str = "fp32",
    url: str | None = None,
    access: Mapping[str, Any] | None = None,
) -> LocalTeacher | ServedTeacher:
    """The teacher of a model folder: a model in memory, or a client where the folder describes a server.

    `device` and `precision` (`fp32`, `bf16`) are for a model in memory. `url`: the server's present address, or the
    file that states it (`discovery.py`), in place of the stored one; `access`: the present `api_key_env` and time-outs,
    which may have changed since the folder was made. Raises SettingsError where the server is down or serves another
    model, TeacherDivergedError where the weights are not numbers.
    """
    # of a server too: the stage `base` stored the tokenizer that was declared for it
    tokenizer = load_tokenizer(folder)
    if not (folder / SERVER).is_file():
        model = load_model(folder, device=device, dtype=precision)
        check_weights(model, "the teacher", TeacherDivergedError)
        return LocalTeacher(model, tokenizer)
    written = json.loads((folder / SERVER).read_text())
    endpoint = endpoint_at(url or written["url"], **(access or {"api_key_env": written["api_key_env"]}))
    teacher = ServedTeacher(CompletionsClient(endpoint, written["served_model"]), tokenizer)
    probe = written["probe"]
    # at every opening: an address may serve another model today, and the stored signal would be of two teachers
    teacher.check_unchanged(Probe(written["served_model"], tuple(probe["ids"]), tuple(probe["logprobs"])))
    return teacher


def server_description(path: str, teacher: ServedTeacher) -> dict[str, Any]:
    """The content of `server.json`: the address, the name of the API key's variable (never the key), and the probe.

    Raises SettingsError where the server fails.
    """
    probe, server = teacher.probe(), teacher.server
    return {
        "url": path,
        "served_model": server.served_model,
        "api_key_env": server.endpoint.api_key_env,
        "probe": {"sha256": probe.sha256, "ids": list(probe.ids), "logprobs": list(probe.logprobs)},
    }
