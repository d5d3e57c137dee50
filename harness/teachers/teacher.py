"""Teachers that write: one face for a model in memory and one behind a server, opened from a teacher's folder.

A stage asks `answers` and need not know where the teacher runs; what it read and wrote is counted. What a
teacher says about ids made elsewhere is `signals.py`'s matter. A server is identified by a probe: its greedy
answer to one fixed prompt is written down when it is adopted and compared whenever it is used.

    teacher = open_teacher(folder, device="cuda", precision="bf16")
    teacher.answers(prompts, max_new_tokens=256, temperature=0.0, seeds=seeds, stop_ids={end})
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.config.checks import refuse
from harness.data.chat import end_of_turn_id, prompt_ids
from harness.models.files import SERVER
from harness.models.generate import context_of, generate
from harness.models.loading import count_parameters, load_model, load_tokenizer
from harness.teachers.completions_client import CompletionsClient, Probe, RowScores
from harness.teachers.discovery import endpoint_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE_PROMPT = [{"role": "user", "content": "Name three rivers, and say of each where it ends."}]
ROWS_AT_ONCE = 256


class GeneratingTeacher(Protocol):
    """A teacher that can be asked for text."""

    tokenizer: "PreTrainedTokenizerBase"
    parameters: int
    """Parameters, for FLOP estimates; 0 for a server, whose size is unknown and whose FLOPs are not counted."""
    spent: Counter[str]
    """Tokens `read` and `written`, and answers `reencoded` from text."""

    @property
    def warnings(self) -> list[str]:
        """What a reader of the receipt must know of how the answers came about."""
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
    """A model in memory; `generate` writes."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.model, self.tokenizer = model, tokenizer
        self.parameters = count_parameters(model)
        self.spent: Counter[str] = Counter()

    @property
    def longest_row(self) -> int | None:
        """Tokens of the longest row it can judge; None where no limit is stated."""
        return context_of(self.model)

    @property
    def warnings(self) -> list[str]:
        """None."""
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
    """A model behind a completions server; `tokenizer` is the one declared for it."""

    parameters = 0

    def __init__(self, server: CompletionsClient, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.server, self.tokenizer = server, tokenizer
        self.spent: Counter[str] = Counter()
        server.encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def longest_row(self) -> int | None:
        """Tokens of the longest row it can judge, which takes room for one more; None where it does not say."""
        return None if self.server.context is None else self.server.context - 1

    @property
    def warnings(self) -> list[str]:
        """That FLOPs are not counted, and that ids were guessed from text where they were."""
        found = [f"{self.server.served_model} is behind a server of unknown size: its FLOPs are not counted"]
        if self.spent["reencoded"]:
            found.append(
                f"{self.spent['reencoded']} answers came as text and were encoded again by the declared tokenizer; "
                "their token ids may differ from those the teacher wrote"
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
        """New token ids for each prompt; see `CompletionsClient.complete`."""
        before = self.server.reencoded
        found = self.server.complete(prompts, max_new_tokens, temperature, seeds, stop_ids)
        self.spent.update(
            read=sum(map(len, prompts)), written=sum(map(len, found)), reencoded=self.server.reencoded - before
        )
        return found

    def score(self, rows: Sequence[Sequence[int]], top_k: int) -> list[RowScores]:
        """Log-probabilities of the likeliest tokens at every position; see `CompletionsClient.score`."""
        return self.server.score(rows, top_k)

    def probe(self) -> Probe:
        """The server's greedy answer to the fixed prompt, rendered by the declared tokenizer."""
        return self.server.probe(prompt_ids(self.tokenizer, PROBE_PROMPT), {end_of_turn_id(self.tokenizer)})

    def check_unchanged(self, adopted: Probe) -> None:
        """Raise SettingsError unless the server still answers the probe as when it was adopted."""
        now = self.probe()
        if not now.agrees(adopted):
            raise refuse(
                "teacher.served_model",
                self.server.served_model,
                f"the server at {self.server.endpoint.url} answers the probe as {now.sha256[:12]} and was adopted as "
                f"{adopted.sha256[:12]}, so it serves another model now",
                "serve the model of before, or give the new one a teacher.revision of its own",
            )


def open_teacher(
    folder: Path, device: str = "cpu", precision: str = "fp32", url: str | None = None
) -> LocalTeacher | ServedTeacher:
    """The teacher of a model folder: loaded, or asked where the folder only names a server.

    `device` and `precision` (`fp32`, `bf16`) are for a model in memory. `url` is where the server listens
    now (or the page that says so, `serving.py`), in place of the address it was adopted at. Raises SettingsError
    where the server is down or changed.
    """
    tokenizer = load_tokenizer(folder)
    if not (folder / SERVER).is_file():
        return LocalTeacher(load_model(folder, device=device, dtype=precision), tokenizer)
    written = json.loads((folder / SERVER).read_text())
    endpoint = endpoint_at(url or written["url"], written["api_key_env"])
    teacher = ServedTeacher(CompletionsClient(endpoint, written["served_model"]), tokenizer)
    probe = written["probe"]
    teacher.check_unchanged(Probe(written["served_model"], tuple(probe["ids"]), tuple(probe["logprobs"])))
    return teacher


def server_description(path: str, teacher: ServedTeacher) -> dict[str, Any]:
    """What `server.json` holds: address and key's variable as they were given, never the key, and the probe."""
    probe, server = teacher.probe(), teacher.server
    return {
        "url": path,
        "served_model": server.served_model,
        "api_key_env": server.endpoint.api_key_env,
        "probe": {"sha256": probe.sha256, "ids": list(probe.ids), "logprobs": list(probe.logprobs)},
    }
