"""Chat rendering: from messages to token ids and the spans that are trained, for every method and evaluation.

Works with any tokenizer's own template. The rendered text is cut at two kinds of places: where an answer begins (the
template's generation prompt ends) and where its end-of-turn token ends. The parts are tokenised separately. So the
prompt a model generates from equals, token for token, the prefix that was trained, whatever text follows it. The loss
covers all assistant turns with their end-of-turn token and nothing else (as in open-instruct's
`sft_tulu_tokenize_and_truncate_v1`); no BOS is added beyond the template's own.

    <|user|> hi <|assistant|> yo <|end|>       input_ids
                              ^          ^     starts=[3]  ends=[5]   (ends are exclusive)

Templates of thinking models (Qwen 3, DeepSeek R1) drop the reasoning of earlier turns, so no single sequence holds the
prompts of all turns as they are at inference. Such a conversation is rendered turn by turn (`render_rows`): row k is
the prompt of turn k and its answer, which alone is trained.

A control token that stands in the text of a message stays text (`control_tokens.py`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from harness.config.checks import SettingsError, refuse
from harness.data.chat_template import (
    DEFAULT_DATE,
    prints_today,
    reads_date,
    thinking_switch,
    training_template,
    with_date,
    with_thinking,
)
from harness.data.control_tokens import marks_of, split
from harness.data.reasoning import CHANNEL, CLOSING, FINAL, answer_of, opened_by

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


AFTER_REASONING = "\n{closing}\n\n"
"""What ends reasoning before an answer, as Qwen 3 and DeepSeek R1 write it."""
_OPENING, _CLOSING = ("|".join(map(re.escape, marks)) for marks in (CLOSING, CLOSING.values()))
THINKING = re.compile(rf"(?:(?P<opened>{_OPENING})\s*)?(?:(?P<closed>{_CLOSING})\s*)?\Z")
"""The end of a generation prompt that begins reasoning, or that begins and ends it (thinking is off)."""
LONGEST_TAIL = 80
"""Characters at the end of a prompt that are searched for it."""


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
    found = []
    for rows in render_rows(tokenizer, conversations, max_length):
        if len(rows) > 1:
            raise _rewritten()
        found += rows
    return found


def render_rows(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], max_length: int
) -> list[list[Rendered]]:
    """Render conversations, in order, each as one row or, where the template rewrites earlier turns, as one a turn.

    Row k of n is the prompt of turn k as at inference and its answer, which alone is trained. Otherwise as
    `render_many`, which refuses such a conversation.
    """
    end_of_turn = _end_of_turn(tokenizer)
    turns = _turns(tokenizer, _as_text(tokenizer, conversations), end_of_turn)
    pieces, lasts = [], []
    for conversation in turns:
        whole = _rewrites(conversation)
        # a whole conversation is its last turn's prompt, in which the earlier turns are answers to train
        numbers = range(len(conversation)) if whole else range(len(conversation) - 1, len(conversation))
        pieces += [[*_prompt_parts(conversation[:k], conversation[k][0]), conversation[k][1]] for k in numbers]
        lasts += [whole] * len(numbers)
    rows = iter(
        [
            _join(parts, max_length, last_alone)
            for parts, last_alone in zip(_tokenise(tokenizer, pieces, end_of_turn), lasts, strict=True)
        ]
    )
    return [[next(rows) for _ in (conversation if _rewrites(conversation) else [0])] for conversation in turns]


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
    conversations = _as_text(tokenizer, conversations)
    prompts = _texts(tokenizer, conversations, generation_prompt=True)
    pieces = [
        _prompt_parts(turns, prompt)
        for turns, prompt in zip(_turns(tokenizer, conversations, end_of_turn), prompts, strict=True)
    ]
    return [[token for part in parts for token in part] for parts in _tokenise(tokenizer, pieces, end_of_turn)]


def rendered_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of a rendered prompt whose messages were cut within control tokens (`control_tokens.Marks.cut_messages`)."""
    return _tokenise(tokenizer, [[text]], _end_of_turn(tokenizer))[0][0]


def answer_ids_many(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], finished: Sequence[bool]
) -> list[list[int]]:
    """Ids of answers after a generation prompt, each with its end-of-turn token where it is finished.

    Where the generation prompt begins reasoning, an answer without any ends it first, as the template renders it.
    Raises SettingsError as `end_of_turn_id` does.
    """
    end_of_turn = _end_of_turn(tokenizer)
    opened, channel = opening_of(tokenizer), _channel_of(tokenizer, end_of_turn)
    answers = _as_text(tokenizer, [[{"role": "assistant", "content": text}] for text in texts])
    pieces = [
        ["", _continued(answer["content"], opened, channel, done) + (end_of_turn if done else "")]
        for (answer,), done in zip(answers, finished, strict=True)
    ]
    return [answer for _, answer in _tokenise(tokenizer, pieces, end_of_turn)]


def rejections(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]]) -> dict[int, str]:
    """By its place, each conversation that the tokenizer's template rejects, with what the template says."""
    # without a template, every conversation is refused alike when it is rendered; most templates reject none
    if "raise_exception" not in _own_template(tokenizer):
        return {}
    try:
        _texts(tokenizer, conversations, generation_prompt=False)
    except SettingsError:
        pass
    else:
        return {}
    found = {}
    for place, messages in enumerate(conversations):
        try:
            tokenizer.apply_chat_template(list(messages), tokenize=False)
        except TemplateError as error:
            found[place] = str(error)
    return found


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that ends an assistant turn under this tokenizer's template.

    Raises SettingsError where the tokenizer has no template, or its template ends a turn without such a token.
    """
    token_id = tokenizer.convert_tokens_to_ids(_end_of_turn(tokenizer))
    assert isinstance(token_id, int)
    return token_id


def opening_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The mark with which this tokenizer's generation prompt begins reasoning; None where it begins none."""
    return opened_by(prompt_tail(tokenizer))


def prompt_tail(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What this tokenizer's generation prompt ends with where it begins reasoning, or begins and ends it; else empty.

    Raises SettingsError where the template rejects a conversation of one turn.
    """
    tail = THINKING.search(_texts(tokenizer, [[{"role": "user", "content": "q"}]], generation_prompt=True)[0])
    assert tail is not None, "the expression matches nothing at the end"
    return tail[0]


def set_template(tokenizer: "PreTrainedTokenizerBase", chat_template: str) -> None:
    """Set the chat template named in a model's settings: `own` changes nothing, `tulu` sets Tülu 3's, `trl` the
    training template that TRL has for the tokenizer's own.

    Raises SettingsError for `tulu` where the tokenizer has no end-of-sequence token, and for `trl` where TRL has none.
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
    if chat_template == "trl":
        training = training_template(_own_template(tokenizer))
        if training is None:
            raise refuse("chat_template", "trl", "TRL has no training template for this one", "set chat_template=own")
        tokenizer.chat_template = training


def fix_template(
    tokenizer: "PreTrainedTokenizerBase", thinking: bool | None = None, template_date: str | None = None
) -> None:
    """Write a model's settings into its chat template, so that whatever renders it later gives the same prompts.

    `thinking` null leaves the template's own default; `template_date` null (YYYY-MM-DD) sets `DEFAULT_DATE` in a
    template that prints today's date, and leaves any other as it is. Raises SettingsError where the template has no
    switch for thinking, or reads no date.
    """
    template = _own_template(tokenizer)
    if thinking is not None:
        if thinking_switch(template) is None:
            raise no_switch("thinking", thinking)
        template = with_thinking(template, thinking)
    if template_date is not None and not reads_date(template):
        raise no_date("template_date", template_date)
    if template_date is not None or prints_today(template):
        template = with_date(template, date.fromisoformat(template_date or DEFAULT_DATE))
    if template != _own_template(tokenizer):
        tokenizer.chat_template = template


def no_switch(field: str, thinking: bool) -> SettingsError:
    """The refusal of a setting for thinking where the template has no switch."""
    reason = "this model's chat template has no switch for thinking (enable_thinking or thinking)"
    return refuse(field, str(thinking).lower(), reason, f"leave {field}=null")


def no_date(field: str, day: str) -> SettingsError:
    """The refusal of a date where the template reads none."""
    reason = "this model's chat template reads no date (strftime_now or date_string)"
    return refuse(field, day, reason, f"leave {field}=null")


def _own_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of the tokenizer's chat template; empty where it has none."""
    template = tokenizer.chat_template or ""
    # a tokenizer may have several, of which conversations are rendered by this one
    return template if isinstance(template, str) else template.get("default", "")


def _as_text(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]]) -> list[list[Message]]:
    """The conversations, cut where a message has a control token in its text."""
    marks = marks_of(tokenizer)
    return [marks.cut_messages(messages) for messages in conversations]


Turn = tuple[str, str]
"""One turn of the assistant as it is at inference: the whole prompt up to it, and the answer with its end of turn."""


def _turns(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[list[Message]], end_of_turn: str
) -> list[list[Turn]]:
    """The assistant's turns of each conversation, as texts."""
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
    found: list[list[Turn]] = []
    for messages, at in zip(conversations, turns, strict=True):
        found.append([])
        for i in at:
            prompt, text = next(prompts), next(answered)
            answer = _answer(text, prompt, messages[i]["content"])
            # the last one: an answer may quote the token itself
            stop = answer.rfind(end_of_turn)
            if stop < 0:
                raise refuse(
                    "chat_template",
                    "own",
                    f"an answer is rendered without its end-of-turn token {end_of_turn}",
                    WAY_OUT,
                )
            found[-1].append((prompt, answer[: stop + len(end_of_turn)]))
    return found


def _answer(text: str, prompt: str, content: str) -> str:
    """What follows `prompt` in the conversation up to this answer (`text`), where the prompt may have begun or ended
    reasoning that the template writes otherwise, or leaves out, once the turn is answered.
    """
    # searched near the end alone, and at its leftmost match
    tail = THINKING.search(prompt, max(0, len(prompt) - LONGEST_TAIL))
    assert tail is not None, "the expression matches nothing at the end"
    opened, closed = tail["opened"], tail["closed"]
    follows = text.startswith(prompt)
    if not tail[0]:
        if not follows:
            raise _rewritten()
        return text[len(prompt) :]
    if not follows and not text.startswith(prompt[: tail.start()]):
        raise _rewritten()
    rest = text[len(prompt) if follows else tail.start() :]
    begun = next((mark for mark in CLOSING if rest.lstrip().startswith(mark)), None)
    if closed:
        # thinking is off: an answer has no reasoning
        return rest if follows and begun is None else answer_of(rest) or ""
    closing = CLOSING[opened]
    if follows:
        # a template that does not look for reasoning in the content ends the prompt's own before it
        return re.sub(rf"\A\s*{re.escape(closing)}\s*{re.escape(opened)}\s*", "", rest)
    if begun == opened:
        return rest.lstrip()[len(opened) :].lstrip()
    # the template leaves the reasoning of every answered turn out, so it is taken from the content
    answer = answer_of(content)
    reasoning = "" if answer is None else content[: len(content) - len(answer)]
    reasoning = reasoning.strip().removeprefix(opened).removesuffix(closing).strip()
    return reasoning + (rest if rest.startswith(closing) else AFTER_REASONING.format(closing=closing) + rest.lstrip())


def _channel_of(tokenizer: "PreTrainedTokenizerBase", end_of_turn: str) -> str:
    """What names the channel of an answer under this template (gpt-oss); empty where it has no channels."""
    probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ((_, answer),) = _turns(tokenizer, [probe], end_of_turn)[0]
    return FINAL if answer.startswith(FINAL) else ""


def _continued(text: str, opened: str | None, channel: str, finished: bool) -> str:
    """An answer as it stands after a generation prompt that has begun reasoning with `opened`, in its channel."""
    if channel and not text.startswith(CHANNEL) and (text or finished):
        return channel + text
    if opened is None:
        return text
    if text.lstrip().startswith(opened):
        return text.lstrip()[len(opened) :].lstrip()
    # an answer that was cut within its reasoning has no text left once that is stripped
    if CLOSING[opened] in text or not (text or finished):
        return text
    return AFTER_REASONING.format(closing=CLOSING[opened]) + text


def _rewrites(turns: list[Turn]) -> bool:
    """Whether the prompt of a later turn does not begin with the turn before it."""
    return any(not later.startswith(prompt + answer) for (prompt, answer), (later, _) in pairwise(turns))


def _prompt_parts(turns: list[Turn], prompt: str) -> list[str]:
    """A prompt after these turns, cut where its answers begin and end: context, answer, ..., context.

    It is one part where the template rewrote a turn in it.
    """
    parts: list[str] = []
    done = ""
    for before, answer in turns:
        if not before.startswith(done):
            return [prompt]
        parts += [before[len(done) :], answer]
        done = before + answer
    return [*parts, prompt[len(done) :]] if prompt.startswith(done) else [prompt]


def _rewritten() -> SettingsError:
    return refuse(
        "chat_template",
        "own",
        "this tokenizer's template rewrites earlier turns, so a prompt would differ from what was trained",
        WAY_OUT,
    )


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
    pieces = [[split(part) for part in parts] for parts in conversations]
    first = [index == place == 0 for parts in pieces for index, part in enumerate(parts) for place in range(len(part))]
    texts = [piece for parts in pieces for part in parts for piece in part]
    found = _ids(tokenizer, [text if head else guard + text for head, text in zip(first, texts, strict=True)])
    ids = iter([one if head or not guard else one[1:] for head, one in zip(first, found, strict=True)])
    return [
        [next(ids) if len(part) == 1 else [token for _ in part for token in next(ids)] for part in parts]
        for parts in pieces
    ]


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _join(parts: list[list[int]], max_length: int, last_alone: bool = False) -> Rendered:
    """Parts (context, answer, ...) as one sequence of at most `max_length` tokens with its spans.

    `last_alone` leaves all answers but the last one without a span.
    """
    input_ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for index, part in enumerate(parts):
        # odd parts are answers
        scored = index % 2 and (index == len(parts) - 1 or not last_alone)
        if scored and len(input_ids) < max_length:
            starts.append(len(input_ids))
            ends.append(min(len(input_ids) + len(part), max_length))
        input_ids += part
    return Rendered(input_ids[:max_length], starts, ends, truncated=len(input_ids) > max_length)
