"""Chat rendering: from messages to token ids and the spans that are trained, for every method and evaluation.

Works with any tokenizer's own template. The rendered text is cut at two kinds of places: where an answer begins (the
template's generation prompt ends) and where its end-of-turn token ends. The parts are tokenised separately. So the
prompt a model generates from equals, token for token, the prefix that was trained, whatever text follows it. The loss
covers all assistant turns with their end-of-turn token and nothing else (as in open-instruct's
`sft_tulu_tokenize_and_truncate_v1`); no BOS is added beyond the template's own.

    <|user|> hi <|assistant|> yo <|end|>       input_ids
                              ^          ^     starts=[3]  ends=[5]   (ends are exclusive)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from harness.config.checks import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

WAY_OUT = "set student.chat_template=tulu or teacher.chat_template=tulu"

# The Tülu 3 template (open-instruct, dataset_transformation.py): role marks are plain text, an answer ends
# with the tokenizer's end-of-sequence token, and a line break stands between turns only.
TULU_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Rendered:
    """One conversation as tokens; turn k of the assistant is `input_ids[starts[k]:ends[k]]`."""

    input_ids: list[int]
    starts: list[int]
    ends: list[int]
    truncated: bool
    """Whether tokens beyond `max_length` were cut off (then the last turn may lack its end-of-turn token)."""

    @property
    def response_tokens(self) -> int:
        """Number of trained tokens."""
        return sum(self.ends) - sum(self.starts)


def render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], max_length: int) -> Rendered:
    """Render one conversation that ends with the assistant. Raises as `render_many`."""
    return render_many(tokenizer, [messages], max_length)[0]


def render_many(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], max_length: int
) -> list[Rendered]:
    """Render conversations, in order; tokens beyond `max_length` are cut off and the row is flagged.

    A turn that is cut off entirely has no span; text that a template writes after the last end-of-turn token
    is left out. Raises SettingsError when the tokenizer has no chat template, or one that rewrites
    earlier turns, adds no end-of-turn token or rejects the conversation.
    """
    end_of_turn = _end_of_turn(tokenizer)
    pieces = _tokenise(tokenizer, _cut(tokenizer, conversations, end_of_turn), end_of_turn)
    return [_join(parts, max_length) for parts in pieces]


def render_prompts(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], max_length: int
) -> list[Rendered]:
    """Render prompts alone, in order: the ids an answer is generated from, and one span of no tokens where it begins.

    Such a row can be trained once an answer is put there. A prompt that leaves no room for a token of an answer has no
    span. Raises SettingsError as `render_many` does.
    """
    found = []
    for ids in prompt_ids_many(tokenizer, conversations):
        # a prompt of `max_length` tokens leaves no room for an answer
        places = [len(ids)] if len(ids) < max_length else []
        found.append(Rendered(ids[:max_length], places, places, truncated=not places))
    return found


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    """Ids of `messages` (all but the last answer) with the generation prompt. Raises as `prompt_ids_many`."""
    return prompt_ids_many(tokenizer, [messages])[0]


def prompt_ids_many(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]]) -> list[list[int]]:
    """Ids to generate the next answer from, equal to `input_ids[:starts[-1]]` of the whole conversation.

    Raises SettingsError as `render_many` does.
    """
    end_of_turn = _end_of_turn(tokenizer)
    prompts = _texts(tokenizer, conversations, generation_prompt=True)
    pieces = _cut(tokenizer, conversations, end_of_turn)
    for parts, prompt in zip(pieces, prompts, strict=True):
        parts.append(_rest(prompt, "".join(parts)))
    return [[token for part in parts for token in part] for parts in _tokenise(tokenizer, pieces, end_of_turn)]


def answer_ids_many(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], finished: Sequence[bool]
) -> list[list[int]]:
    """Ids of answers after a generation prompt, each with its end-of-turn token where it is finished.

    Raises SettingsError as `end_of_turn_id` does.
    """
    end_of_turn = _end_of_turn(tokenizer)
    pieces = [["", text + (end_of_turn if done else "")] for text, done in zip(texts, finished, strict=True)]
    return [answer for _, answer in _tokenise(tokenizer, pieces, end_of_turn)]


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that ends an assistant turn under this tokenizer's template.

    Raises SettingsError where the tokenizer has no template, or its template ends a turn without such a token.
    """
    token_id = tokenizer.convert_tokens_to_ids(_end_of_turn(tokenizer))
    assert isinstance(token_id, int)
    return token_id


def set_template(tokenizer: "PreTrainedTokenizerBase", chat_template: str) -> None:
    """Set the chat template named in a model's settings: `own` changes nothing, `tulu` sets Tülu 3's.

    Raises SettingsError for `tulu` where the tokenizer has no end-of-sequence token.
    """
    if chat_template == "tulu":
        if not tokenizer.eos_token:
            raise refuse(
                "chat_template",
                "tulu",
                "the tokenizer has no end-of-sequence token",
                "choose a model whose tokenizer has one",
            )
        tokenizer.chat_template = TULU_TEMPLATE


def _cut(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], end_of_turn: str
) -> list[list[str]]:
    """Texts of each conversation up to its last answer: context, answer, context, answer, ..."""
    turns = [[i for i, message in enumerate(messages) if message["role"] == "assistant"] for messages in conversations]
    prompts = iter(
        _texts(
            tokenizer,
            [messages[:i] for messages, at in zip(conversations, turns, strict=True) for i in at],
            generation_prompt=True,
        )
    )
    answered = iter(
        _texts(
            tokenizer,
            [messages[: i + 1] for messages, at in zip(conversations, turns, strict=True) for i in at],
            generation_prompt=False,
        )
    )
    pieces = []
    for at in turns:
        parts: list[str] = []
        done = ""
        for _ in at:
            prompt, text = next(prompts), next(answered)
            answer = _rest(text, prompt)
            # the last one: an answer may quote the token itself
            stop = answer.rfind(end_of_turn)
            if stop < 0:
                raise refuse(
                    "chat_template",
                    "own",
                    f"an answer is rendered without its end-of-turn token {end_of_turn}",
                    WAY_OUT,
                )
            answer = answer[: stop + len(end_of_turn)]
            parts += [_rest(prompt, done), answer]
            done = prompt + answer
        pieces.append(parts)
    return pieces


def _rest(text: str, beginning: str) -> str:
    """`text` after `beginning`; raises SettingsError where earlier text is no prefix of later text."""
    if not text.startswith(beginning):
        raise refuse(
            "chat_template",
            "own",
            "this tokenizer's template rewrites earlier turns, so a prompt would differ from what was trained",
            WAY_OUT,
        )
    return text[len(beginning) :]


def _texts(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], generation_prompt: bool
) -> list[str]:
    if not conversations:
        return []
    try:
        return tokenizer.apply_chat_template(  # type: ignore[return-value]
            list(conversations), tokenize=False, add_generation_prompt=generation_prompt
        )
    except TemplateError as error:
        raise refuse(
            "chat_template", "own", f"this tokenizer's template rejects a conversation ({error})", WAY_OUT
        ) from error


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Text of the special token that the template writes after an answer."""
    if not tokenizer.chat_template:
        raise refuse("chat_template", "own", "this tokenizer has no chat template", WAY_OUT)
    mark = "ANSWER"
    probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": mark}]
    after = _texts(tokenizer, [probe], generation_prompt=False)[0].rpartition(mark)[2].lstrip()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    # the longest: one special token may be the beginning of another
    found = max((token for token in special if after.startswith(token)), key=len, default=None)
    if found is None:
        raise refuse(
            "chat_template",
            "own",
            "this tokenizer's template ends an answer with no end-of-turn token, so a model would never learn to stop",
            WAY_OUT,
        )
    return found


def _tokenise(
    tokenizer: "PreTrainedTokenizerBase", conversations: list[list[str]], end_of_turn: str
) -> list[list[list[int]]]:
    """Ids of every part, each tokenised separately, in one batch."""
    # Some tokenizers put a space before the first word of a text. A part that follows another one is not the first
    # word, so for these tokenizers it is tokenised after a special token, which is then removed.
    alone, behind = (_ids(tokenizer, [text])[0] for text in ("x", end_of_turn + "x"))
    guard = "" if behind[1:] == alone else end_of_turn
    ids = iter(
        _ids(
            tokenizer,
            [(guard if index else "") + part for parts in conversations for index, part in enumerate(parts)],
        )
    )
    return [[next(ids)[1 if guard and index else 0 :] for index in range(len(parts))] for parts in conversations]


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _join(parts: list[list[int]], max_length: int) -> Rendered:
    """Parts (context, answer, ...) as one sequence of at most `max_length` tokens with its spans."""
    input_ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for index, part in enumerate(parts):
        # odd parts are answers
        if index % 2 and len(input_ids) < max_length:
            starts.append(len(input_ids))
            ends.append(min(len(input_ids) + len(part), max_length))
        input_ids += part
    return Rendered(input_ids[:max_length], starts, ends, truncated=len(input_ids) > max_length)
