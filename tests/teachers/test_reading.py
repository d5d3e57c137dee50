"""A teacher's reading of a student's rows: tokens of one side, ends of turns, and templates of real families."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from torch.nn import functional

from harness.config.checks import SettingsError
from harness.config.recipe import TOKEN_DIVERGENCES, TrainingPhase
from harness.data.chat import TULU_TEMPLATE, answer_ids_many, end_of_turn_id, prompt_ids, render, render_rows
from harness.data.sequences import TURN, Row, Rows, answered, collate
from harness.models.logits import logits_at, scored_positions, scored_tokens
from harness.teachers.reading import Reading, SharedVocabulary, render_alike
from harness.teachers.signals import LiveTeacher
from harness.teachers.sparse_logits import SparseLogits, top_k_of
from harness.training.losses.divergences import between, next_token_logprobs
from harness.training.losses.objectives import objective_for
from harness.training.training_report import outside_warnings
from tests.doubles import CHAT_TEMPLATE, byte_tokenizer, tiny_llama

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARKS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|end_of_text|> <|eot_id|> <|start_header_id|> "
    "<|end_header_id|> <think> </think> <tool_call> </tool_call>"
).split()
FAMILIES = {
    "tulu": ("<|end_of_text|>", TULU_TEMPLATE),
    "llama3": ("<|eot_id|>", (TEMPLATES / "llama3.jinja").read_text()),
    "qwen2_5": ("<|im_end|>", (TEMPLATES / "qwen2_5.jinja").read_text()),
    "qwen3": ("<|im_end|>", (TEMPLATES / "qwen3.jinja").read_text()),
    "chatml": (
        "<|im_end|>",
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
}
EMPTY = "<think>\n\n</think>\n\n"
PAIRS = [("tulu", "llama3"), ("llama3", "tulu"), ("qwen2_5", "qwen3"), ("qwen3", "qwen2_5"), ("chatml", "tulu")]


def tokenizer(family, *more):
    """The byte tokenizer with every family's marks, in the template of one."""
    made = byte_tokenizer()
    made.add_tokens([*MARKS, *more], special_tokens=True)
    made.eos_token, made.chat_template = FAMILIES[family]
    made.bos_token = "<|begin_of_text|>"
    return made


def said(*texts, system=None):
    roles = ["user", "assistant"] * (len(texts) // 2)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    return [{"role": "system", "content": system}, *turns] if system else turns


CONVERSATIONS = {
    "one turn": said("hi there", "hello"),
    "system": said("hi", "hello", system="Be brief."),
    "turns": said("hi", "hello", "and then?", "that is all"),
    "system and turns": said("hi", "hello", "more?", "no", "sure?", "yes", system="Be brief."),
    "tools": said("add 2 and 3", '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'),
    "lines": said("two lines\nhere", "one\n\ntwo\n- three"),
}


def dataset(rendered, numbers=None):
    """Rows as `make_subset` writes them."""
    numbers = range(len(rendered)) if numbers is None else numbers
    columns = {
        "row": list(numbers),
        "input_ids": [one.input_ids for one in rendered],
        "starts": [one.starts for one in rendered],
        "ends": [one.ends for one in rendered],
    }
    return Rows(Dataset.from_dict(columns))


def paired(student, teacher, conversations, rendering="own"):
    """The reading of conversations by a teacher, and the student's rows of them."""
    mine, theirs = (tokenizer(name) for name in (student, teacher))
    own = dataset([render(theirs, one, 1000) for one in conversations])
    return Reading(mine, theirs, [own], rendering), dataset([render(mine, one, 1000) for one in conversations])


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_teacher_reads_its_own_rendering_token_by_token_and_scores_the_students_tokens(pair, name):
    conversation = CONVERSATIONS[name]
    if "qwen3" in pair and "turns" in name:
        return  # rendered turn by turn, as the next test has it
    reading, rows = paired(*pair, [conversation])
    student, teacher = (tokenizer(family) for family in pair)
    (row,), read = rows, reading.rows(rows[0])
    assert reading.own and len(read) == 1
    # nothing of these answers is changed by a template, so it is the teacher's own rendering to the last token; a
    # student under Qwen 3's template has an empty block of reasoning in its answers, which the teacher then reads too
    block = EMPTY if pair[0] == "qwen3" else ""
    thinking = [
        {**turn, "content": block + turn["content"]} if turn["role"] == "assistant" else turn for turn in conversation
    ]
    assert read[0].input_ids.tolist() == render(teacher, thinking, 1000).input_ids
    batch, theirs = collate([row], 0), collate(read, 0)
    tokens, their_tokens = scored_tokens(batch["labels"]).tolist(), scored_tokens(theirs["labels"]).tolist()
    mine, end = end_of_turn_id(student), end_of_turn_id(teacher)
    assert len(tokens) == len(their_tokens) > 0 and tokens.count(mine) == their_tokens.count(end) >= 1
    assert their_tokens == [end if token == mine else token for token in tokens]
    assert int(scored_positions(batch["labels"]).sum()) == len(tokens)


def test_a_teacher_whose_template_rewrites_earlier_turns_reads_each_turn_by_itself():
    conversation = CONVERSATIONS["system and turns"]
    student, teacher = tokenizer("chatml"), tokenizer("qwen3")
    separate = render_rows(teacher, [conversation], 1000)[0]
    assert len(separate) == 3, "Qwen 3 drops what it wrote before earlier answers"
    own = dataset(separate, [5 + turn * TURN for turn in range(3)])
    (row,) = dataset([render(student, conversation, 1000)], [5])
    reading = Reading(student, teacher, [own])
    read = reading.rows(row)
    assert [one.input_ids.tolist() for one in read] == [one.input_ids for one in separate]
    tokens, theirs = (scored_tokens(collate(rows, 0)["labels"]).tolist() for rows in ([row], read))
    assert tokens == theirs, "both families end a turn with one token"
    # and a student with a row a turn has a teacher that reads whole conversations
    whole = dataset([render(student, conversation, 1000)], [5])
    back = Reading(teacher, student, [whole])
    for turn, one in enumerate(own):
        (found,) = back.rows(one)
        assert found.starts == [len(found.input_ids) - (one.ends[0] - one.starts[0])]
        prefix = render(student, conversation, 1000)
        assert found.input_ids[: found.starts[0]].tolist() == prefix.input_ids[: prefix.starts[turn]]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_students_own_answer_follows_the_teachers_prompt(pair):
    conversation = CONVERSATIONS["system"]
    reading, _ = paired(*pair, [CONVERSATIONS["one turn"], conversation])
    student, teacher = (tokenizer(family) for family in pair)
    answer = answer_ids_many(student, ["quite another answer"], [True])[0]
    written = answered(prompt_ids(student, conversation[:-1]), answer, turn=0, source=1)
    (read,) = reading.rows(written)
    # Qwen 3 ends its reasoning before an answer that has none
    theirs = answer_ids_many(teacher, [EMPTY * (pair[1] == "qwen3") + "quite another answer"], [True])[0]
    assert read.input_ids.tolist() == prompt_ids(teacher, conversation[:-1]) + theirs
    # an answer that was cut has no end of turn on either side
    (cut,) = reading.rows(answered(prompt_ids(student, conversation[:-1]), answer[:-3], turn=0, source=1))
    assert cut.input_ids.tolist() == prompt_ids(teacher, conversation[:-1]) + theirs[:-3]


def test_a_later_turn_is_read_after_the_gold_history():
    conversation = CONVERSATIONS["turns"]
    reading, rows = paired("tulu", "llama3", [conversation])
    student, teacher = tokenizer("tulu"), tokenizer("llama3")
    answer = answer_ids_many(student, ["no"], [True])[0]
    (read,) = reading.rows(answered(rows[0].input_ids[: rows[0].starts[1]].tolist(), answer, turn=1, source=0))
    assert (
        read.input_ids.tolist() == prompt_ids(teacher, conversation[:-1]) + answer_ids_many(teacher, ["no"], [True])[0]
    )
    # a label that answers the second turn alone says which turn it is
    label = Row(rows[0].input_ids[: rows[0].ends[1]], [rows[0].starts[1]], [rows[0].ends[1]], number=0, turn=1)
    assert reading.rows(label)[0].input_ids.tolist() == render(teacher, conversation, 1000).input_ids


def test_an_answer_that_the_teachers_template_trims_keeps_the_students_tokens():
    conversation = said("hi", "  hello  ")
    reading, rows = paired("tulu", "llama3", [conversation])
    (read,) = reading.rows(rows[0])
    span = read.input_ids[read.starts[0] : read.ends[0]]
    mine = rows[0].input_ids[rows[0].starts[0] : rows[0].ends[0]]
    assert span[:-1].tolist() == mine[:-1].tolist() and tokenizer("tulu").decode(span[:-1]) == "  hello  "
    assert render(tokenizer("llama3"), conversation, 1000).ends[0] < read.ends[0], "its own rendering is shorter"


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_with_the_students_rendering_only_the_end_of_turn_is_the_teachers(pair):
    reading, rows = paired(*pair, [CONVERSATIONS["one turn"]], rendering="student")
    (read,), row = reading.rows(rows[0]), rows[0]
    mine, theirs = (end_of_turn_id(tokenizer(family)) for family in pair)
    swapped = {mine: theirs, theirs: mine}
    assert not reading.own and (read.starts, read.ends) == (row.starts, row.ends)
    assert read.input_ids.tolist() == [swapped.get(token, token) for token in row.input_ids.tolist()]


def test_alike_templates_read_the_row_itself_and_make_no_tensors():
    same = tokenizer("tulu")
    larger = tokenizer("tulu", "<pad>2")
    for teacher in (same, larger):
        reading = Reading(tokenizer("tulu"), teacher)
        row = answered([5, 6], [7, 8])
        assert reading.as_it_is and reading.rows(row) == [row] and reading.tensors([row], 0) == {}
    assert render_alike(same, larger) and not render_alike(same, tokenizer("chatml"))
    with_system = tokenizer("chatml")
    with_system.chat_template = FAMILIES["chatml"][1].replace(
        "{% for",
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{% endif %}{% for",
        1,
    )
    assert not render_alike(tokenizer("chatml"), with_system), "a system prompt of its own"


def test_templates_that_differ_without_the_teachers_rows_are_refused():
    with pytest.raises(SettingsError, match=r"their chat templates differ .*teacher\.rendering=student"):
        Reading(tokenizer("tulu"), tokenizer("llama3"))


def test_a_row_or_turn_that_the_teachers_rendering_lacks_is_refused_by_number():
    reading, rows = paired("tulu", "llama3", [CONVERSATIONS["turns"]])
    for row in (Row(rows[0].input_ids, rows[0].starts, rows[0].ends, number=7), answered([1], [2], turn=5, source=0)):
        with pytest.raises(SettingsError, match=r"row [70].*turn .*raise corpus\.max_length"):
            reading.rows(row)


def test_a_token_that_one_side_lacks_is_refused_with_its_row():
    student, teacher = tokenizer("tulu", "<mine>"), tokenizer("tulu", "<theirs>")
    fine, marked = (render(student, said("hi", "fine"), 1000) for _ in range(2))
    # no text becomes a control token; rows that another program tokenised may have one
    marked.input_ids[-2] = student.convert_tokens_to_ids("<mine>")
    rows = dataset([fine, marked], numbers=(3, 4))
    reading = Reading(student, teacher)
    reading.check([rows[0]])
    with pytest.raises(SettingsError, match=r"corpus='row 4'.*the token <mine>, which the student has and the teacher"):
        reading.check(rows)
    # a text that quotes the teacher's token is text in the teacher's own rendering too
    llama, quoted = tokenizer("llama3", "<theirs>"), said("what is <theirs>?", "a mark")
    own, here = render(llama, quoted, 1000), dataset([render(tokenizer("tulu"), quoted, 1000)])
    Reading(tokenizer("tulu"), llama, [dataset([own])]).check(here)
    own.input_ids[own.starts[0] - 3] = llama.convert_tokens_to_ids("<theirs>")
    with pytest.raises(SettingsError, match=r"corpus='row 0'.*the token <theirs>, which the teacher has and the"):
        Reading(tokenizer("tulu"), llama, [dataset([own])]).check(here)


# ---- distributions ----------------------------------------------------------------------------------------------


def with_tokens(*tokens):
    made = byte_tokenizer()
    made.add_tokens(list(tokens), special_tokens=True)
    return made


def logits(columns, rows=7, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 3


def test_a_teacher_with_more_tokens_and_a_padded_head_is_renormalised_over_the_students():
    shared = SharedVocabulary(byte_tokenizer(), with_tokens("<pad2>"))
    whole = logits(272)
    probabilities = whole.softmax(-1)
    torch.testing.assert_close(shared.of_teacher(whole), whole[:, :262])
    torch.testing.assert_close(shared.mass_outside(whole), probabilities[:, 262:].sum(-1))
    assert shared.outside is None and shared.never_generated == []
    assert SharedVocabulary(byte_tokenizer(), byte_tokenizer()).mass_outside(logits(262)) is None


def test_a_students_own_token_is_compared_on_neither_side():
    student, teacher = with_tokens("<mine>", "<both>"), with_tokens("<theirs>", "<both>")
    shared = SharedVocabulary(student, teacher)
    assert shared.never_generated == [262] and shared.missing == {262: "<mine>"} and shared.foreign == {262: "<theirs>"}
    whole = logits(264)
    kept = [*range(262), 263]
    compared = shared.of_teacher(whole).softmax(-1)
    torch.testing.assert_close(compared[:, kept], whole[:, kept].softmax(-1))
    assert (compared[:, 262] == 0).all()
    torch.testing.assert_close(shared.mass_outside(whole), whole.softmax(-1)[:, 262])


class Fixed:
    """A teacher that gives the same logits whatever it reads."""

    gives, parameters = "logits", 1

    def __init__(self, reading):
        self.reading = reading

    def logits(self, input_ids, attention_mask, scored):
        return logits(272, int(scored.sum()), seed=1)


@pytest.mark.parametrize("divergence", TOKEN_DIVERGENCES)
def test_a_divergence_over_shared_tokens_is_that_of_the_renormalised_distributions(divergence):
    batch, kept = collate([Row(np.arange(6, 20), [4], [14])], 0), [*range(262), 263]
    phase = TrainingPhase(divergence=divergence, cross_entropy_weight=0.3).normal()
    scored, tokens = scored_positions(batch["labels"]), scored_tokens(batch["labels"])
    teacher = Fixed(Reading(with_tokens("<mine>", "<both>"), with_tokens("<theirs>", "<both>")))
    model, reference = tiny_llama(vocab_size=264), tiny_llama(vocab_size=264)

    found = objective_for(phase, teacher, 264).compare(model, batch).sum
    whole = logits_at(reference, batch["input_ids"], batch["attention_mask"], scored)
    pair = next_token_logprobs(whole[:, kept], teacher.logits(None, None, scored)[:, kept])
    # the columns of one side are taken away; the cross-entropy stays that of the student's whole vocabulary
    expected = 0.7 * between(phase, *pair) + 0.3 * functional.cross_entropy(whole, tokens, reduction="sum")
    found.backward(), expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_the_mass_outside_is_logged_and_warned_of_above_a_hundredth():
    assert outside_warnings({}) == outside_warnings({"teacher_mass_outside": 0.0099}) == []
    (words,) = outside_warnings({"teacher_mass_outside": 0.034})
    assert "3.4%" in words
    student = byte_tokenizer()
    teacher = LiveTeacher(tiny_llama(vocab_size=272, seed=1), with_tokens("<pad2>"), student)
    batch = collate([Row(np.arange(6, 20), [4], [14])], 0)
    for chunk in (None, 4):
        objective = objective_for(TrainingPhase(divergence="forward_kl"), teacher, 262)
        objective.diagnoses, objective._chunk = True, chunk
        found = objective.compare(tiny_llama(), batch).diagnostics["teacher_mass_outside"]
        whole = teacher.logits(batch["input_ids"], batch["attention_mask"], scored_positions(batch["labels"]))
        assert float(found) == pytest.approx(float(whole.softmax(-1)[:, 262:].sum()), rel=1e-5)


def test_the_ends_of_turns_change_places_in_the_distribution():
    student, teacher = tokenizer("tulu"), tokenizer("llama3")
    mine, theirs = end_of_turn_id(student), end_of_turn_id(teacher)
    own = dataset([render(teacher, CONVERSATIONS["one turn"], 1000)])
    shared = Reading(student, teacher, [own]).shared
    whole = logits(len(teacher))
    compared = shared.of_teacher(whole)
    assert torch.equal(compared[:, mine], whole[:, theirs]) and torch.equal(compared[:, theirs], whole[:, mine])
    rest = [token for token in range(len(student)) if token not in (mine, theirs)]
    assert torch.equal(compared[:, rest], whole[:, rest]) and shared.mass_outside(whole).abs().max() < 1e-6


def test_an_end_of_turn_that_only_one_side_has_stands_for_the_others():
    student, teacher = with_tokens("<eos2>"), byte_tokenizer()
    student.eos_token, student.chat_template = "<eos2>", CHAT_TEMPLATE.replace("<|end|>", "<eos2>")
    own = dataset([render(teacher, said("a", "b"), 100)])
    shared = Reading(student, teacher, [own]).shared
    whole, end = logits(262), end_of_turn_id(teacher)
    compared = shared.of_teacher(whole).softmax(-1)
    torch.testing.assert_close(compared[:, 262], whole.softmax(-1)[:, end])
    assert (compared[:, end] == 0).all() and shared.missing == {}, "its own end of turn is not missing"
    torch.testing.assert_close(compared.sum(-1), torch.ones(7))


def test_top_k_tokens_come_in_the_students_ids_without_those_it_lacks():
    shared = SharedVocabulary(with_tokens("<mine>", "<both>"), with_tokens("<theirs>", "<both>"))
    whole = logits(264)
    whole[:3, 262] = 9.0  # a token of the teacher's among the top k of three positions
    sparse = shared.of_sparse(top_k_of(whole, 5))
    compared = shared.of_teacher(whole).log_softmax(-1)
    assert sparse.outside is not None
    torch.testing.assert_close(sparse.outside[:3], whole.softmax(-1)[:3, 262])
    assert (sparse.outside[3:] == 0).all()
    for position in range(7):
        used = sparse.ids[position] >= 0
        assert int(used.sum()) == (4 if position < 3 else 5)
        ids = sparse.ids[position][used]
        if position < 3:  # its mass is known, so the others are renormalised as the whole distribution is
            torch.testing.assert_close(sparse.logprobs[position][used], compared[position][ids], atol=1e-5, rtol=1e-5)
        named = sparse.logprobs[position][used].exp().sum() + sparse.tail[position].exp()
        assert float(named) == pytest.approx(1.0, abs=1e-5)
    assert isinstance(sparse, SparseLogits) and 262 not in sparse.ids
