"""Filters and measures of synthetic rows, on texts made by hand."""

import pytest

from harness.stages.synthesis.filters import (
    CONTAMINATION,
    FILTERS,
    Candidate,
    Judge,
    Limits,
    copied,
    inconsistent,
    measures,
    rejected_shares,
    unverified,
    wrong_length,
)

HUMAN = [("Which remedy treats Zovami?", "Take onad"), ("Which remedy treats Tivola?", "Take ipuk")]
LONG = "one two three four five six seven eight nine ten"


def judge(**limits):
    return Judge(Limits(**limits), HUMAN, validation=["Name the dose of Onad"], heldout=["What treats Rezoku, please?"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Candidate("", ""), "malformed prompt"),
        (Candidate("Who?", ""), "malformed answer"),
        (Candidate("Who?", "I", truncated=True), "too long"),
        (Candidate("what  treats REZOKU, please?", "x"), "held-out prompt"),
        (Candidate("name the DOSE of Onad", "x"), "validation prompt"),
        (Candidate("which remedy treats  tivola?", "other"), "copy of a human row"),
        (Candidate("Which remedy treats Puga?", "Take onad"), ""),
    ],
)
def test_a_row_is_dropped_for_the_first_thing_that_is_wrong_with_it(row, reason):
    assert judge().reason(row) == reason


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("What treats Rezoku then, please?", "like a held-out prompt"),  # 4 of 5 and 4 words: 8/9
        ("Name the dose of Puga", "like a validation prompt"),  # 4 of 5 and 5
        ("Which remedy treats Puga?", "like a human row"),  # 3 of 4 and 4
        ("Which remedy helps Puga?", ""),  # 2 of 4 and 4
    ],
)
def test_likeness_is_looked_for_only_where_it_is_asked_for(prompt, reason):
    assert judge(near_duplicate=0.75).reason(Candidate(prompt, "x")) == reason
    assert judge().reason(Candidate(prompt, "x")) == ""


def test_a_prompt_made_of_held_out_words_is_contamination_whatever_the_settings():
    mine = Judge(Limits(), [], [], heldout=[f"Read: {LONG} and say."])
    assert mine.reason(Candidate(f"So {LONG} then", "x")) == "like a held-out prompt"  # 10 of 12 words
    assert mine.reason(Candidate("one two three four five six seven", "x")) == "", "no 8-gram"
    prompts = {f"{like}{a}" for like in ("", "like a ") for a in ("held-out prompt", "validation prompt")}
    assert set(CONTAMINATION) == {*prompts, "repeats a scored item"}


def test_words_taken_over_from_the_examples_are_copied_in_prompt_and_answer():
    examples = [("Say the numbers", LONG)]
    assert copied(Candidate("Q", f"well {LONG}", examples)) == "copies its examples"
    assert copied(Candidate(LONG, "A", [(LONG + " eleven", "B")])) == "copies its examples"
    assert copied(Candidate("Q", "one two three", examples)) == "", "a short answer may be another row's too"
    assert copied(Candidate("Q", f"{LONG} " + "x " * 10, examples)) == "", "half of the words is not more than half"


def test_lengths_are_bounded_below_by_the_settings():
    short = Candidate("Hi", "yo", prompt_tokens=3, answer_tokens=2)
    assert wrong_length(short, 3, 2) == ""
    assert wrong_length(short, 4, 2) == wrong_length(short, 3, 3) == "too short"
    assert judge(least_prompt_tokens=4).reason(short) == "too short"


def test_repeats_are_judged_against_what_was_kept_and_not_what_was_seen():
    mine, row = judge(), Candidate("Who treats Puga?", "I do")
    assert mine.repeats(row) == ""
    assert mine.repeats(row) == "", "seen, not kept"
    mine.keep(row)
    assert mine.repeats(row) == "repeat"
    assert mine.repeats(Candidate("Who treats Puga?", "She does")) == "", "another answer is another row"


def test_near_duplicates_of_kept_rows_are_dropped_by_their_prompts():
    mine = judge(near_duplicate=0.7)
    mine.keep(Candidate("Who helps in need of Puga?", "I do"))
    assert mine.repeats(Candidate("Who helps in need of Kilo?", "other")) == "near-duplicate"
    assert mine.repeats(Candidate("Who helps?", "other")) == ""  # 2 of 6 and 2: 1/2


def test_only_an_answer_that_is_known_to_be_right_is_verified():
    assert unverified(Candidate("Add 3 and 4.", " 7", truth="7")) == ""
    assert unverified(Candidate("Add 3 and 4.", "8", truth="7")) == "wrong answer"
    assert unverified(Candidate("Add 3 and 4.", "#### 7.0", truth="so #### 7")) == ""
    assert unverified(Candidate("Add 3 and four.", "7")) == "truth unknown"
    asked, unasked = judge(verified=True), judge()
    assert asked.reason(Candidate("What is love?", "x")) == "truth unknown"
    assert unasked.reason(Candidate("What is love?", "x")) == ""


@pytest.mark.parametrize(
    ("samples", "least", "agrees"),
    [
        (["7", " 7", "8", "9", "7"], 0.6, True),
        (["7", "7", "8", "9", "9"], 0.6, False),
        (["7", "7", "8", "8", "8"], 0.4, False),  # enough agree, more say something else
        (["7", "7", "8", "8", "9"], 0.4, True),
        (["", "", "", "", "7"], 0.4, False),  # cut samples agree with nothing
        (["", "", "", "", ""], 0.01, False),
        (["six #### 7", "#### 7.00"], 1.0, False),  # a number after #### is not the text 7
    ],
)
def test_an_answer_has_to_win_the_vote_and_by_the_share_asked_for(samples, least, agrees):
    assert inconsistent("7", samples, least) == ("" if agrees else "inconsistent answer")


def test_final_numbers_vote_by_value_zero_included():
    assert inconsistent("a #### 0", ["b #### 0.0", "c #### 0", "d #### 1"], 0.6) == ""


def test_reasons_have_names_and_are_counted():
    mine = judge()
    mine.reject("repeat")
    mine.reject("repeat")
    mine.reject("held-out prompt")
    with pytest.raises(AssertionError):
        mine.reject("a reason nobody lists")
    shares = rejected_shares(mine.rejected, 10)
    assert shares == {"rejected.repeat": 0.2, "rejected.held-out prompt": 0.1, "contaminated_share": 0.1}
    assert set(mine.rejected) <= set(FILTERS)


def test_measures_by_hand():
    kept = [("add 3 and 4", "7"), ("add 3 and 5", "8"), ("sort kw", "kw"), ("add 3 and 4", "9")]
    found = measures(kept, [("add 1 and 2", "3"), ("reverse kw", "wk")])
    assert found["distinct_share"] == 3 / 4
    # words of prompts: add 3 and 4 / add 3 and 5 / sort kw / add 3 and 4; of answers 7, 8, kw, 9
    assert found["distinct_1"] == 10 / 18  # add 3 and 4 5 sort kw 7 8 9
    assert found["distinct_2"] == 5 / 10  # add 3, 3 and, and 4, and 5, sort kw of 3 + 3 + 1 + 3
    assert found["distinct_1_matched"] == 7 / 10  # the first two rows: add 3 and 4 7 5 8
    assert found["human_distinct_1"] == found["human_distinct_1_matched"] == 8 / 8
    assert found["self_similarity"] == (1 + 0.75 + 0 + 1) / 4 and found["alike_share"] == 3 / 4
    assert found["human_self_similarity"] == 0.0
    assert found["human_similarity"] == (0.5 + 0.5 + 0.5 + 0.5) / 4  # "add .. and ..", and "kw" of "reverse kw"
