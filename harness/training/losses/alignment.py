"""Alignment: which tokens of two tokenizers spell the same piece of one conversation; no model is involved.

A row as the student's tokenizer renders it is compared with its rendering by the teacher's. Every token is spelt in
bytes, a turn of the assistant is its tokens' bytes end to end, and it is cut wherever both sides have a token border
at the same byte. The pieces are chunks: some tokens of the student, some of the teacher, the same text. End-of-turn
is a chunk of its own. One tokenizer twice gives chunks of one token.

    student  |he|llo| wor|ld|<end>|       chunks   hello  " world"  <end>
    teacher  |hello| world|</s>|

Where the sides spell different text (one was cut to its maximum length, or its tokenizer rewrites characters)
chunks are made of the text they share from the beginning and, if both turns are whole, up to the end; what
lies between has none. A turn of which no text is shared has none at all. `Coverage` counts both.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config.checks import refuse
from harness.data.chat import end_of_turn_id
from harness.data.sequences import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN = b"\xff", b"\xfe"
"""Stand-ins for tokens without a text of their own, the student's and the teacher's: in no UTF-8 text, never equal."""
FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte token of SentencePiece's fallback, by its number."""


@dataclass(frozen=True)
class Spelling:
    """What every token id of a tokenizer stands for, as bytes."""

    pieces: list[bytes | None]
    """Bytes of each id, the space before a word included; None for ids that stand for no text of their own."""
    end_of_turn: int
    """Id of the token that ends an assistant turn."""


@dataclass(frozen=True)
class Chunks:
    """C pieces of one text: token ranges [start, end) in the student's row and in the teacher's, int64 (C, 2) each."""

    student: np.ndarray
    teacher: np.ndarray

    def __len__(self) -> int:
        return len(self.student)


@dataclass(frozen=True)
class Coverage:
    """How much of the student's rows is aligned with the teacher's rendering."""

    rows: int = 0
    rows_left_out: int = 0
    """Rows without a single chunk, the missing ones included."""
    rows_missing: int = 0
    """Rows that the teacher's rendering lacks."""
    tokens: int = 0
    """Scored tokens of the student's rows."""
    aligned_tokens: int = 0
    """Of these, tokens in a chunk."""

    @property
    def share(self) -> float:
        """Share of scored tokens in a chunk, 0 to 1."""
        return self.aligned_tokens / max(self.tokens, 1)


def spelling(tokenizer: "PreTrainedTokenizerBase") -> Spelling:
    """The bytes of every token of a fast tokenizer with a chat template.

    Byte-level BPE is spelt by its table of characters, SentencePiece's byte fallback by its number, everything
    else by the tokenizer's own decoder behind another token, where a word shows its space. Raises SettingsError
    for a tokenizer without a `tokenizer.json`.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refuse(
            "tokenizer",
            str(tokenizer.name_or_path),
            "only fast tokenizers can be aligned",
            "save the model with a tokenizer.json",
        )
    kinds = set(_kinds(json.loads(backend.to_str())["decoder"]))
    characters = {character: byte for byte, character in enumerate(_byte_characters())}
    vocabulary = tokenizer.get_vocab()
    pieces: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        # three ways in which fast tokenizers spell bytes; see above
        if "ByteLevel" in kinds:
            known = all(character in characters for character in token)
            pieces[number] = bytes(characters[character] for character in token) if known else None
        elif "ByteFallback" in kinds and (found := FALLBACK.fullmatch(token)):
            pieces[number] = bytes([int(found[1], 16)])
        elif backend.decoder is None:
            pieces[number] = token.encode()
        else:
            text = backend.decoder.decode(["a", token])
            pieces[number] = text[1:].encode() if text.startswith("a") else None
    for number, added in tokenizer.added_tokens_decoder.items():
        pieces[number] = str(added).encode()
    # the unknown token stands for any text, so it must not be aligned with its own name
    unknown: Any = tokenizer.unk_token_id
    if unknown is not None:
        pieces[unknown] = None
    return Spelling(pieces, end_of_turn_id(tokenizer))


def align(student: Row, teacher: Row, spellings: tuple[Spelling, Spelling]) -> Chunks:
    """The chunks of one conversation as the student's tokenizer and as the teacher's rendered it.

    `spellings` are the student's and the teacher's. Turns are taken in order; those that one side cut away
    have no chunks. Chunks are in the order of the text and never overlap; both sides' ranges lie in scored
    spans. A token at position 0, which nothing predicts, is in no chunk.
    """
    found = [np.empty((0, 2, 2), dtype=np.int64)]  # chunk, side, (start, end)
    turns = zip(
        zip(student.starts, student.ends, strict=True),
        zip(teacher.starts, teacher.ends, strict=True),
        strict=False,
    )
    for (first, last), (teacher_first, teacher_last) in turns:
        chunks = _turn(student.input_ids[first:last], teacher.input_ids[teacher_first:teacher_last], spellings)
        found.append(chunks + np.array([[first], [teacher_first]]))
    every = np.concatenate(found)  # (C, 2, 2)
    # the first token of a row has no prediction on that side
    every = every[(every[:, :, 0] > 0).all(axis=1)]
    return Chunks(every[:, 0], every[:, 1])


def coverage(pairs: Iterable[tuple[Row, Row | None]], spellings: tuple[Spelling, Spelling]) -> Coverage:
    """The coverage of pairs of a student's row and the teacher's row, None where the teacher has none."""
    rows = left_out = missing = tokens = aligned = 0
    for student, teacher in pairs:
        chunks = align(student, teacher, spellings).student if teacher is not None else np.empty((0, 2), dtype=np.int64)
        rows += 1
        missing += teacher is None
        left_out += not len(chunks)
        tokens += num_scored(student)
        aligned += int((chunks[:, 1] - chunks[:, 0]).sum())
    return Coverage(rows, left_out, missing, tokens, aligned)


def num_scored(row: Row) -> int:
    """Scored tokens of a row; the token at position 0 is none."""
    return sum(end - max(start, 1) for start, end in zip(row.starts, row.ends, strict=True))


def _turn(student_ids: np.ndarray, teacher_ids: np.ndarray, spellings: tuple[Spelling, Spelling]) -> np.ndarray:
    """Chunks of one turn, (C, 2 sides, 2), counted from the turn's first token."""
    whole = [
        len(ids) > 0 and int(ids[-1]) == one.end_of_turn
        for ids, one in zip((student_ids, teacher_ids), spellings, strict=True)
    ]
    lengths = [len(ids) - done for ids, done in zip((student_ids, teacher_ids), whole, strict=True)]
    student, student_ends = _spelt(student_ids[: lengths[0]], spellings[0], UNKNOWN[0])
    teacher, teacher_ends = _spelt(teacher_ids[: lengths[1]], spellings[1], UNKNOWN[1])
    # a template or a tokenizer may put a space before an answer; it belongs to the first chunk and not to the text
    spaces = len(student) - len(student.lstrip()), len(teacher) - len(teacher.lstrip())
    if student[: spaces[0]] != teacher[: spaces[1]]:
        student, student_ends = student[spaces[0] :], np.maximum(student_ends - spaces[0], 0)
        teacher, teacher_ends = teacher[spaces[1] :], np.maximum(teacher_ends - spaces[1], 0)

    # chunks of the text that both begin with; borders count bytes from the turn's start
    shared = _shared(student, teacher)
    borders = np.intersect1d(_up_to(student_ends, shared), _up_to(teacher_ends, shared))
    parts = [_between(borders, borders, student_ends, teacher_ends, from_start=True)]
    # where both turns are whole, chunks of the text that both end with; these borders count bytes from the end
    if all(whole) and shared < max(len(student), len(teacher)):
        tail = min(_shared(student[::-1], teacher[::-1]), min(len(student), len(teacher)) - shared)
        borders = np.intersect1d(
            _from(student_ends, len(student) - tail) - len(student),
            _from(teacher_ends, len(teacher) - tail) - len(teacher),
        )
        parts.append(_between(borders + len(student), borders + len(teacher), student_ends, teacher_ends))
    if all(whole) and (any(map(len, parts)) or not (student or teacher)):
        parts.append(np.array([[[length, length + 1] for length in lengths]]))
    return np.concatenate(parts)


def _spelt(ids: np.ndarray, one: Spelling, unknown: bytes) -> tuple[bytes, np.ndarray]:
    """The bytes of these tokens end to end, and where each token ends."""
    pieces = [unknown if one.pieces[number] is None else one.pieces[number] for number in ids.tolist()]
    return b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)  # type: ignore[arg-type]


def _shared(first: bytes, second: bytes) -> int:
    """Length of the beginning that both have."""
    size = min(len(first), len(second))
    same = np.frombuffer(first, dtype=np.uint8, count=size) == np.frombuffer(second, dtype=np.uint8, count=size)
    return size if same.all() else int(same.argmin())


def _up_to(ends: np.ndarray, limit: int) -> np.ndarray:
    return ends[(ends > 0) & (ends <= limit)]


def _from(ends: np.ndarray, least: int) -> np.ndarray:
    borders = np.append(0, ends)
    return borders[borders >= least]


def _between(
    student_borders: np.ndarray,
    teacher_borders: np.ndarray,
    student_ends: np.ndarray,
    teacher_ends: np.ndarray,
    from_start: bool = False,
) -> np.ndarray:
    """Chunks between neighbouring borders (bytes, ascending); `from_start` adds a border before the first token.

    A token of no bytes belongs to what stands before it, or to the first chunk.
    """
    sides = []
    # bytes to tokens: as many tokens end at or before a border as stand before it
    for borders, ends in ((student_borders, student_ends), (teacher_borders, teacher_ends)):
        counts = np.searchsorted(ends, borders, side="right")
        counts = np.append(0, counts) if from_start else counts
        sides.append(np.stack([counts[:-1], counts[1:]], axis=1))
    return np.stack(sides, axis=1).astype(np.int64)


def _kinds(decoder: Any) -> Iterable[str]:
    """Kinds of a decoder and of those it is a sequence of."""
    if decoder:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table), in byte order."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]
