"""Alignment: chunks tile both sides, spell the same text, and are never made where the text differs."""

import random
from functools import lru_cache

import numpy as np
import pytest

from harness.data.chat import end_of_turn_id, render, render_many
from harness.data.miniature.tokenizer import CHARACTERS, load_mini_tokenizer
from harness.data.sequences import Row
from harness.training.losses.alignment import align, coverage, num_scored, spelling
from tests import real
from tests.doubles import CHAT_TEMPLATE, CORPUS, bpe_tokenizer, byte_tokenizer

NAMES = ("bytes", "byte-level", "metaspace")
REAL = ("own", "smollm2")
AWKWARD = [
    "hello world",
    " leading space",
    "two  spaces,   three\n\nand lines\t!",
    "1234567 + 0.5 = 1234567.5",
    "naïve café",
    "日本語 🙂👩‍👩‍👧 e\u0301",
    "",
    "a<0x0A>b",
]


@lru_cache
def tokenizer_called(name):
    if name == "bytes":
        return byte_tokenizer()
    if name == "mini":
        return load_mini_tokenizer()
    return real.real_tokenizer(name) if name in REAL else bpe_tokenizer(name)


@lru_cache
def spelling_of(name):
    return spelling(tokenizer_called(name))


def row(name, *answers, max_length=10_000):
    messages = [
        {"role": role, "content": text} for answer in answers for role, text in (("user", "q"), ("assistant", answer))
    ]
    found = render(tokenizer_called(name), messages, max_length)
    return Row(np.array(found.input_ids, dtype=np.int32), found.starts, found.ends, 0)


def aligned(names, *answers, max_lengths=(10_000, 10_000)):
    rows = [row(name, *answers, max_length=length) for name, length in zip(names, max_lengths, strict=True)]
    return (*rows, align(*rows, tuple(map(spelling_of, names))))


def tiles(one, ranges):
    """Whether ranges cover the scored spans exactly, in order, without a gap."""
    places = [place for start, end in ranges for place in range(start, end)]
    return places == [place for start, end in zip(one.starts, one.ends, strict=True) for place in range(start, end)]


def text_of(one, ranges, name):
    pieces = spelling_of(name).pieces
    return [b"".join(pieces[number] for number in one.input_ids[start:end]) for start, end in ranges]


def check(names, text):
    student, teacher, chunks = aligned(names, text)
    assert tiles(student, chunks.student) and tiles(teacher, chunks.teacher), text
    spelt = [text_of(one, ranges, name) for one, ranges, name in zip(
        (student, teacher), (chunks.student, chunks.teacher), names, strict=True
    )]  # fmt: skip
    # a space that one tokenizer puts before an answer is no text, nor are two names of the end of a turn
    assert [part.lstrip() for part in spelt[0][:1]] == [part.lstrip() for part in spelt[1][:1]] or len(chunks) == 1
    assert spelt[0][1:-1] == spelt[1][1:-1], text
    assert b"".join(spelt[0][:-1]).lstrip() == text.encode().lstrip()
    ends = [one.input_ids[one.ends[0] - 1] for one in (student, teacher)]
    assert ends == [end_of_turn_id(tokenizer_called(name)) for name in names]
    assert (chunks.student[-1, 1] - chunks.student[-1, 0], chunks.teacher[-1, 1] - chunks.teacher[-1, 0]) == (1, 1)


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("teacher", NAMES)
def test_chunks_tile_both_sides_and_spell_the_same_text(student, teacher):
    for text in AWKWARD:
        check((student, teacher), text)


@pytest.mark.parametrize("names", [REAL, REAL[::-1], ("bytes", "smollm2"), ("smollm2", "metaspace")])
def test_chunks_of_real_tokenizers_tile_both_sides_and_spell_the_same_text(names):
    for text in AWKWARD:
        check(names, text)


@pytest.mark.parametrize(
    "names", [("bytes", "byte-level"), ("byte-level", "metaspace"), ("metaspace", "bytes"), REAL, REAL[::-1]]
)
def test_chunks_tile_both_sides_of_random_text(names):
    draw = random.Random(0)
    alphabet = [*"ab 1\n", *CORPUS[1], "\u0301", "\u200d", "\U0001f600", "\x00", "�", "<", ">"]
    for _ in range(150):
        check(names, "".join(draw.choices(alphabet, k=draw.randrange(12))))


@pytest.mark.parametrize("other", NAMES)
def test_the_minis_own_tokenizer_meets_the_others(other):
    draw = random.Random(1)
    for text in ["Add 37 and 8.", "The answer is 45.", *("".join(draw.choices(CHARACTERS, k=9)) for _ in range(30))]:
        check(("mini", other), text)
        check((other, "mini"), text)


@pytest.mark.parametrize("name", [*NAMES, "mini", *REAL])
def test_one_tokenizer_twice_gives_chunks_of_one_token(name):
    for text in ["the answer is 42", "Add 37 and 8.  \n."] + (AWKWARD if name != "mini" else []):
        student, _, chunks = aligned((name, name), text, "and more")
        assert np.array_equal(chunks.student, chunks.teacher)
        assert (chunks.student[:, 1] - chunks.student[:, 0] == 1).all() and len(chunks) == num_scored(student)


def test_a_chunk_ends_where_both_sides_have_a_border_worked_by_hand():
    student, teacher, chunks = aligned(("bytes", "byte-level"), "the answer")
    # this byte-level BPE has learnt "the" and " answer"; bytes have a border everywhere, so the teacher's decide
    assert text_of(teacher, chunks.teacher, "byte-level") == [b"the", b" answer", b"</s>"]
    first = student.starts[0]
    assert chunks.student.tolist() == [[first, first + 3], [first + 3, first + 10], [first + 10, first + 11]]
    first = teacher.starts[0]
    assert chunks.teacher.tolist() == [[first, first + 1], [first + 1, first + 2], [first + 2, first + 3]]


def test_a_character_split_over_tokens_is_cut_between_its_bytes():
    _, _, chunks = aligned(("bytes", "byte-level"), "ÿ")
    assert (chunks.student[:, 1] - chunks.student[:, 0]).tolist() == [1, 1, 1]  # two bytes and the end of the turn


def test_turns_are_aligned_apart_and_in_order():
    student, teacher, chunks = aligned(("bytes", "metaspace"), "the answer", "42", "")
    assert tiles(student, chunks.student) and tiles(teacher, chunks.teacher)
    ends = [end - 1 for end in student.ends]
    partners = {start: other for (start, _), (other, _) in zip(chunks.student, chunks.teacher, strict=True)}
    assert [partners[end] for end in ends] == [end - 1 for end in teacher.ends]


def test_every_scored_token_of_real_rows_is_in_a_chunk_though_the_tokenizers_cut_words_in_other_places():
    chosen = [row["messages"] for row in real.rows()[::30]]
    rendered = [
        [Row(np.array(one.input_ids), one.starts, one.ends, 0) for one in render_many(tokenizer, chosen, 10_000)]
        for tokenizer in map(tokenizer_called, REAL)
    ]
    pairs, spellings = list(zip(*rendered, strict=True)), tuple(map(spelling_of, REAL))
    found = coverage(pairs, spellings)
    assert (found.rows, found.rows_left_out, found.share) == (200, 0, 1.0)
    widths = set()
    for one, other in pairs:
        chunks = align(one, other, spellings)
        widths |= set(zip(np.diff(chunks.student)[:, 0].tolist(), np.diff(chunks.teacher)[:, 0].tolist(), strict=True))
    assert {(1, 1), (1, 2), (2, 1), (2, 2)} <= widths


@pytest.mark.parametrize("cut", range(15, 45))
def test_a_truncated_row_is_aligned_on_the_part_that_both_have(cut):
    text = "naïve 日本 the other answers"
    *_, whole = aligned(("bytes", "byte-level"), "42", text)
    for lengths in ((cut, 10_000), (10_000, cut), (cut, cut - 3)):
        _, _, found = aligned(("bytes", "byte-level"), "42", text, max_lengths=lengths)
        # the text is the same, so what is left are the chunks of the whole rows that both sides still hold
        held = (whole.student[:, 1] <= lengths[0]) & (whole.teacher[:, 1] <= lengths[1])
        assert np.array_equal(found.student, whole.student[held])
        assert np.array_equal(found.teacher, whole.teacher[held])


def test_a_mark_that_sentencepiece_takes_for_a_space_is_left_out_alone():
    student, _, chunks = aligned(("bytes", "metaspace"), "a ▁ is its own mark")
    assert b"".join(text_of(student, chunks.student, "bytes")).split() == [b"a", b"is", b"its", b"own", b"mark<|end|>"]


def test_an_answer_of_spaces_that_one_side_makes_more_of_is_aligned_at_its_end_alone():
    student, teacher, chunks = aligned(("bytes", "metaspace"), " ")
    assert chunks.student.tolist() == [[student.ends[0] - 1, student.ends[0]]]
    assert chunks.teacher.tolist() == [[teacher.ends[0] - 1, teacher.ends[0]]]


def lowered(name):
    """The same tokenizer, but it writes capitals small and takes accents off, as some do."""
    import json

    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    source = tokenizer_called(name)
    backend = Tokenizer.from_str(json.dumps(json.loads(source.backend_tokenizer.to_str())))
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = source.chat_template
    return tokenizer


def test_text_that_one_side_rewrites_has_no_chunk_and_what_stands_around_it_has():
    tokenizer = lowered("byte-level")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one É two"}]
    found = render(tokenizer, messages, 1000)
    teacher = Row(np.array(found.input_ids, dtype=np.int32), found.starts, found.ends, 0)
    student = row("bytes", "one É two")
    chunks = align(student, teacher, (spelling_of("bytes"), spelling(tokenizer)))
    spelt = text_of(student, chunks.student, "bytes")
    assert b"".join(spelt) == b"one  two<|end|>" and spelt[-1] == b"<|end|>"
    found = coverage([(student, teacher)], (spelling_of("bytes"), spelling(tokenizer)))
    assert (found.tokens, found.aligned_tokens) == (11, 9)


def test_chunks_of_two_different_texts_never_overlap_and_spell_the_same_even_so():
    draw = random.Random(2)
    for _ in range(60):
        one, other = ("".join(draw.choices("ab e", k=draw.randrange(6))) for _ in range(2))
        student, teacher = row("bytes", one), row("byte-level", other)
        chunks = align(student, teacher, (spelling_of("bytes"), spelling_of("byte-level")))
        for ranges in (chunks.student, chunks.teacher):
            assert (ranges[1:, 0] >= ranges[:-1, 1]).all() and (ranges[:, 1] > ranges[:, 0]).all()
        ours, theirs = text_of(student, chunks.student, "bytes"), text_of(teacher, chunks.teacher, "byte-level")
        assert [part.strip() for part in ours[:-1]] == [part.strip() for part in theirs[:-1]], (one, other)


def test_a_row_without_a_shared_text_and_a_missing_row_are_left_out_and_counted():
    spellings = spelling_of("bytes"), spelling_of("byte-level")
    pairs = [
        (row("bytes", "the answer"), row("byte-level", "the answer")),
        (row("bytes", "the answer"), row("byte-level", "42")),
        (row("bytes", "the answer"), None),
    ]
    found = coverage(pairs, spellings)
    assert (found.rows, found.rows_left_out, found.rows_missing) == (3, 2, 1)
    assert (found.tokens, found.aligned_tokens, found.share) == (33, 11, pytest.approx(1 / 3))


def test_an_unknown_token_never_matches_another_unknown_token():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<unk>", "<|user|>", "<|assistant|>", "</s>", "a", "b", "q"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<|user|>", "<|assistant|>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|end|>", "</s>")
    rows = []
    for answer in ("aXb", "aYb"):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        found = render(tokenizer, messages, 1000)
        rows.append(Row(np.array(found.input_ids, dtype=np.int32), found.starts, found.ends, 0))
    chunks = align(*rows, (spelling(tokenizer), spelling(tokenizer)))
    assert (chunks.student - rows[0].starts[0]).tolist() == [[0, 1], [2, 3], [3, 4]]
