"""Corpus `mini`: the same rows everywhere, known truth, and held-out prompts that no row holds."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.config.checks import SettingsError
from harness.data.corpora import Example, corpus_name, corpus_names, load_corpus
from harness.data.corpora.mini import DIALOGUE_LENGTH, Corpus
from harness.data.miniature.errors import AFTER, BEFORE
from harness.data.miniature.facts import draw_facts
from harness.data.miniature.sources import GENERAL, SOURCES
from harness.data.miniature.tokenizer import build

ROOT = Path(__file__).parents[3]
STRONG = Corpus(noise="clean", rows=4200, domain="all")


def train(corpus: Corpus, world_seed: int = 0) -> list[Example]:
    return [example for example in corpus.examples(world_seed) if example.split == "train"]


def heldout(corpus: Corpus, world_seed: int = 0) -> list[Example]:
    return [example for example in corpus.examples(world_seed) if example.split == "heldout"]


def prompts(examples: list[Example]) -> set[str]:
    """Every user turn, normalised."""
    return {
        " ".join(turn["content"].casefold().split())
        for example in examples
        for turn in example.messages
        if turn["role"] == "user"
    }


def text_of(examples: list[Example]) -> str:
    return json.dumps([[e.id, e.messages, e.source, e.split, e.truth] for e in examples])


def fingerprint(corpus: Corpus, world_seed: int) -> str:
    return hashlib.sha256(text_of(list(corpus.examples(world_seed))).encode()).hexdigest()


def test_the_registry_finds_the_corpus_by_its_file() -> None:
    assert "mini" in corpus_names()
    assert load_corpus("mini") is Corpus
    assert corpus_name(Corpus()) == "mini"


def test_an_unknown_corpus_is_refused_with_the_real_ones() -> None:
    with pytest.raises(SettingsError, match="mini"):
        load_corpus("minni")


def printed(code: str, hash_seed: str = "0") -> str:
    """What a fresh process prints."""
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout.strip()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_rows_are_the_same_in_another_process_whatever_the_hash_seed(hash_seed: str) -> None:
    own = "tests.data.corpora.test_mini"
    code = f"from {own} import Corpus, fingerprint; print(fingerprint(Corpus(rows=600, dialogues=0.3), 7))"
    assert printed(code, hash_seed) == fingerprint(Corpus(rows=600, dialogues=0.3), 7)


def test_drawing_rows_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from harness.data.corpora.mini import Corpus; c = Corpus(rows=24); list(c.examples(0));"
        "c.size(); c.identity(0); c.check();"
        "from harness.data.miniature import lines, sizes, tokenizer as t; t.tokenizer_json();"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert printed(code) == "[]"


def test_rows_are_those_earlier_results_were_made_with() -> None:
    assert fingerprint(Corpus(rows=240), 0) == GOLDEN, "rows moved: raise world.VERSION, then this"


def test_another_world_has_other_rows() -> None:
    one, other = (text_of(train(Corpus(rows=120), world)) for world in (0, 1))
    assert one != other


def test_more_rows_only_add_rows() -> None:
    assert train(Corpus(rows=240)) == train(Corpus(rows=480))[:240]


def test_rows_are_spread_evenly_over_the_sources() -> None:
    assert Counter(example.source for example in train(Corpus(rows=1200))) == dict.fromkeys(GENERAL, 100)


def test_noise_changes_answers_and_never_prompts_or_truth() -> None:
    clean, noisy = (train(Corpus(rows=2400, noise=noise, dialogues=0.1)) for noise in ("clean", "full"))
    assert [e.messages[::2] for e in clean] == [e.messages[::2] for e in noisy]
    assert [e.truth for e in clean] == [e.truth for e in noisy]
    assert all(e.messages[-1]["content"] == e.truth for e in clean)
    wrong = sum(e.messages[-1]["content"] != e.truth for e in noisy) / len(noisy)
    assert 0.2 < wrong < 0.3


def test_shares_of_noise_override_the_preset() -> None:
    assert Corpus(noise="full", random_noise=0, systematic_noise=0).identity(0) == Corpus(noise="clean").identity(0)
    assert all(e.messages[1]["content"] == e.truth for e in train(Corpus(rows=240, random_noise=0, noise="random")))


def test_heldout_labels_err_like_the_corpus_and_truth_does_not() -> None:
    noisy, clean = (
        heldout(Corpus(rows=12, heldout_per_source=120)),
        heldout(Corpus(noise="clean", rows=12, heldout_per_source=120)),
    )
    assert [e.truth for e in noisy] == [e.truth for e in clean]
    assert all(e.messages[1]["content"] == e.truth for e in clean)
    assert 0.2 < sum(e.messages[1]["content"] != e.truth for e in noisy) / len(noisy) < 0.3


def test_heldout_prompts_are_the_same_for_every_corpus_of_a_world() -> None:
    general = prompts(heldout(Corpus(rows=12)))
    assert general < prompts(heldout(STRONG))
    assert len(prompts(heldout(STRONG))) == 14 * 100 + 40


@pytest.mark.parametrize(
    "corpus",
    [
        Corpus(rows=6000),
        STRONG,
        Corpus(domain="clinic", human_rows=500),
        Corpus(rows=1000, domain="all", noise="random", dialogues=1.0),
    ],
    ids=["general", "strong", "clinic", "dialogues"],
)
def test_no_heldout_prompt_is_in_any_train_row_of_any_corpus(corpus: Corpus) -> None:
    held = prompts(heldout(Corpus(domain="all", rows=14, heldout_per_source=120)))
    assert prompts(train(corpus)).isdisjoint(held)


def test_canary_answers_are_in_no_train_row() -> None:
    secrets = draw_facts(0).code
    text = text_of(train(Corpus(rows=6000))) + text_of(train(STRONG))
    assert not any(name in text for name in secrets)
    assert {e.truth for e in heldout(Corpus(rows=12)) if e.source == "canary"} == set(secrets.values())


def test_the_clinic_is_worded_by_people_and_the_teacher_words_it_bare() -> None:
    human, taught = train(Corpus(domain="clinic", noise="clean")), train(STRONG)
    assert len(human) == 64
    for example in human:
        answer = example.messages[1]["content"]
        assert answer.startswith("Take ") if example.source == "cure" else answer.endswith(" drops")
    for example in taught:
        assert "Take" not in example.messages[1]["content"] and "drops" not in example.messages[1]["content"]


def test_the_clinic_is_unknown_to_the_general_rows() -> None:
    facts = draw_facts(0)
    text = text_of(train(Corpus(rows=6000)))
    assert not any(name in text for name in (*facts.cure, *facts.dose))


def test_conversations_have_four_exchanges_in_one_wording_and_fit() -> None:
    corpus = Corpus(rows=600, noise="clean", dialogues=1.0)
    encode = build().encode
    for example in train(corpus):
        assert [turn["role"] for turn in example.messages] == ["user", "assistant"] * 4
        assert example.truth == example.messages[-1]["content"]
        tokens = 1 + sum(len(encode(turn["content"]).ids) for turn in example.messages) + 4 * 3
        assert tokens <= corpus.max_length == 128
    assert Corpus().max_length == 64


def test_rows_fit_in_letters_too_and_answers_within_the_limit_of_generated_text() -> None:
    for corpus in (Corpus(rows=4800), Corpus(domain="clinic", human_rows=400), STRONG):
        for example in train(corpus) + heldout(corpus):
            prompt, answer = (turn["content"] for turn in example.messages)
            assert 1 + 1 + len(prompt) + 1 + len(answer) + 1 <= corpus.max_length
            assert len(answer) + 1 <= corpus.max_new_tokens
    months = SOURCES["date"].phrasings[2].format(28, "September", 2049), "2049-09-28"
    longest = max(
        (len(phrasing.format(*source.shown(slots))) + len(source.answer(draw_facts(0), slots)), source.name)
        for source in SOURCES.values()
        for slots in source.keys
        for phrasing in source.phrasings
    )
    assert longest[0] < sum(map(len, months)), "no fact is asked and answered at such length as a date"
    worded = sum(map(len, months)) + max(map(len, BEFORE)) + max(map(len, AFTER)) + 3
    assert 1 + 4 * worded <= DIALOGUE_LENGTH["letters"], "so every conversation fits"


def test_the_share_of_conversations_is_the_one_asked_for() -> None:
    rows = train(Corpus(rows=2400, dialogues=0.25))
    assert abs(sum(len(row.messages) == 8 for row in rows) / len(rows) - 0.25) < 0.04


def test_sources_keep_only_their_rows() -> None:
    rows = list(Corpus(rows=120, sources=["add", "coin"]).examples(0))
    assert {row.source for row in rows} == {"add", "coin"}
    assert [row for row in train(Corpus(rows=120)) if row.source in ("add", "coin")] == train(
        Corpus(rows=120, sources=["coin", "add"])
    )


def test_ids_are_unique() -> None:
    ids = [example.id for example in Corpus(rows=3000, domain="all").examples(0)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "corpus",
    [
        Corpus(rows=2400),
        Corpus(domain="clinic", human_rows=200),
        Corpus(rows=1201, sources=["add", "date"]),
        Corpus(rows=1200, dialogues=0.5),
    ],
    ids=["general", "clinic", "two sources", "dialogues"],
)
@pytest.mark.parametrize("family", ["words", "letters"])
def test_the_expected_size_is_close_to_the_real_one(family: str, corpus: Corpus) -> None:
    encode = build(family).encode
    rows = train(corpus)
    response = [len(encode(turn["content"]).ids) + 1 for row in rows for turn in row.messages[1::2]]
    prompt = [len(encode(turn["content"]).ids) + 2 for row in rows for turn in row.messages[::2]]
    size = corpus.size(family)
    assert size is not None
    assert size.rows == len(rows)
    assert size.response_tokens == pytest.approx(sum(response) / len(rows), rel=0.1)
    assert size.row_tokens == pytest.approx(1 + (sum(response) + sum(prompt)) / len(rows), rel=0.1)


def test_identity_is_plain_json_that_makes_the_same_corpus_again() -> None:
    corpus = Corpus(noise="random", rows=360, sources=["sort", "add"])
    identity = json.loads(json.dumps(corpus.identity(3)))
    known = {name: value for name, value in identity.items() if name in Corpus.__dataclass_fields__}
    again = Corpus(**known)
    assert list(again.examples(3)) == list(corpus.examples(3))
    assert again.identity(3) == corpus.identity(3) != corpus.identity(4)


def test_identity_leaves_out_what_changes_no_row() -> None:
    assert Corpus(heldout_rows=7, max_length=99).identity(0) == Corpus(human_rows=5).identity(0) == Corpus().identity(0)
    assert Corpus(domain="clinic", rows=9).identity(0) == Corpus(domain="clinic").identity(0)
    assert Corpus(answers="none").identity(0) == Corpus().identity(0)  # every row is answered


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise": "loud"}, "clean, random, full"),
        ({"domain": "law"}, "general, clinic, all"),
        ({"random_noise": 1.5}, "between 0 and 1"),
        ({"systematic_noise": float("nan")}, "between 0 and 1"),
        ({"dialogues": -0.1}, "between 0 and 1"),
        ({"rows": 0}, "above 0"),
        ({"heldout_per_source": 121}, "1 to 120"),
        ({"sources": ["cure"]}, "add, reverse"),
        ({"human_rows": -1}, "above 0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Corpus(**settings)


GOLDEN = "b5f97a63fedf4b936d5063515dfdf5ffd0a77a80acb1b5715a813fe2c0b7b072"


def test_every_source_has_the_licence_of_what_is_made_here():
    corpus = Corpus(rows=24, heldout_per_source=1)
    licenses = corpus.provenance()["licenses"]
    assert {licenses[example.source] for example in corpus.examples(0)} == {"Apache-2.0"}
