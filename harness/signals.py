"""Teacher signals: what a teacher says about given token ids.

A signal answers one question, the teacher's logits at scored positions, for ids made elsewhere; it never
makes ids (`generate.py` does) and never compares (`divergences.py` does). A signal with another source,
a cache of stored log-probabilities or a server, is another class with the same `logits` method. A live
teacher can also give hidden states first and logits of some of them later (`heads.py`).

    teacher = LiveTeacher(load_model(folder), teacher_tokenizer, student_tokenizer)
    teacher.logits(input_ids, attention_mask, scored)      # (N, V), no gradient
"""

from typing import TYPE_CHECKING, Protocol

import torch

from harness.config.checks import SettingsError
from harness.data.chat import render
from harness.models.loading import PROBE, count_parameters, tokenizer_hash
from harness.models.logits import logits_at, logits_from, states_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TeacherSignal(Protocol):
    """What the trainer asks of a teacher."""

    parameters: int
    """Parameters of the teacher, for FLOP estimates."""

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Teacher logits (N, V) at the N True positions of `scored` (B, T), without gradient."""
        ...


class LiveTeacher:
    """A model in memory: frozen, in eval mode, asked under no_grad."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        student_tokenizer: "PreTrainedTokenizerBase",
        device: torch.device | str = "cpu",
    ) -> None:
        """Raise SettingsError where teacher and student share no tokenizer or template: ids would not agree."""
        hashes = tokenizer_hash(tokenizer), tokenizer_hash(student_tokenizer)
        if hashes[0] != hashes[1]:
            raise SettingsError(
                f"teacher {_name(tokenizer)} (tokenizer {hashes[0][:12]}) cannot teach student "
                f"{_name(student_tokenizer)} (tokenizer {hashes[1][:12]}) token by token: their tokenizers "
                "differ; choose a teacher and a student with the same tokenizer, or method=cross_kd."
            )
        if render(tokenizer, PROBE, 1000) != render(student_tokenizer, PROBE, 1000):
            raise SettingsError(
                f"teacher {_name(tokenizer)} cannot teach student {_name(student_tokenizer)} token by token: their "
                "chat templates differ, so the teacher would judge rows it never writes; set student.chat_template and "
                "teacher.chat_template to the same template, e.g. tulu."
            )
        self.model = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.parameters = count_parameters(model)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Teacher logits (N, V) at the N True positions of `scored` (B, T), without gradient."""
        self.model.eval()  # a caller may have put a shared module back into train mode
        with torch.no_grad():
            return logits_at(self.model, input_ids, attention_mask, scored)

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, d) at the N True positions of `scored`, from which `logits_from` makes logits."""
        self.model.eval()
        with torch.no_grad():
            return states_at(self.model, input_ids, attention_mask, scored)

    def logits_from(self, states: torch.Tensor) -> torch.Tensor:
        """Teacher logits (n, V) of hidden states (n, d) that `states` gave, without gradient."""
        with torch.no_grad():
            return logits_from(self.model, states)


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return repr(str(tokenizer.name_or_path or "in memory"))
