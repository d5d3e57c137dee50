"""The sentence at the top says what was found and no more; the front matter is one the hub reads."""

import re
import subprocess
import sys

import pytest

from harness.report.model_card import card_text, inert, verdict

COST = {"seconds": 10.0, "flops": 2e9, "tokens": 1e5}
SMALL = {"seconds": 4.0, "flops": 1e9, "tokens": 1e5}


def receipt(gain=0.05, p=0.001, **changes):
    found = {"score": 0.5, "gain": gain, "low": gain - 0.02, "high": gain + 0.02, "p": p, "covers": "items only"}
    score = {"eval": "verified", "metric": "accuracy", "higher_is_better": True, "score": 0.5 + gain, "items": 400}
    score |= {"low": 0.4, "high": 0.6, "covers": "items only", "against": {"sft": found, "base": found}}
    made = {
        "name": "kd-weak-0.1-s0",
        "headline": {"eval": "verified", "metric": "accuracy"},
        "scores": [score],
        "recipe": {"name": "kd"},
        "budget": {"label": "300 steps x 32 rows"},
        "sft_cost": {"total": SMALL},
        "cost": dict.fromkeys(("train", "teacher", "total", "amortised"), COST)
        | {"with_teacher_training": {**COST, "flops": 5e9}},
        "arm": None,
    }
    return made | changes


@pytest.mark.parametrize(
    ("gain", "p", "says"),
    [
        (
            0.05,
            0.001,
            "Beats SFT at the same budget (300 steps x 32 rows) in verified accuracy: +0.050 [+0.030, +0.070]",
        ),
        (-0.05, 0.001, "Loses to SFT at the same budget"),
        (0.05, 0.2, "Cannot be told from SFT at the same budget"),
        (0.05, None, "Cannot be told from SFT at the same budget"),
        (0.05, 0.0, "Beats SFT"),
    ],
)
def test_the_sentence_says_what_the_interval_allows(gain, p, says):
    arm = {"seeds": 3, "gain": gain, "low": gain - 0.02, "high": gain + 0.02, "p": p, "covers": "seeds and items"}
    text = verdict(receipt(-gain, 1.0, arm=arm))  # this model alone has no say
    assert text.startswith(says) and "at 2 times its FLOPs (+1e+09) and +6 s" in text
    assert f"over the 3 seeds of its arm (seeds and items); this model alone: {-gain:+.3f}" in text
    assert "not counting the training of the teacher (3e+09 FLOPs)" in text
    assert text.endswith("its interval covers test items, not another seed.")


@pytest.mark.parametrize(
    ("gain", "p", "says"),
    [
        (0.05, 0.0, "hint: ahead of SFT at the same budget (300 steps x 32 rows) in verified accuracy: +0.050 ["),
        (-0.05, 0.001, "hint: behind SFT at the same budget"),
        (0.05, 0.2, "hint: no clear difference from SFT at the same budget"),
        (0.05, None, "hint: no clear difference from SFT at the same budget"),
    ],
)
def test_one_seed_is_a_hint(gain, p, says):
    text = verdict(receipt(gain, p))
    assert text.startswith(says) and text.endswith("the interval covers test items, not another seed (one seed).")
    assert not any(word in text for word in ("Beats", "Loses", "beats", "loses"))


def test_of_a_loss_lower_is_better():
    made = receipt(gain=-0.05)
    made["scores"][0] |= {"higher_is_better": False}
    assert verdict(made).startswith("hint: ahead of SFT")
    made["arm"] = {"seeds": 2, "gain": -0.05, "low": -0.06, "high": -0.04, "p": 0.01, "covers": "seeds and items"}
    assert verdict(made).startswith("Beats SFT")


def test_sft_itself_is_named_as_the_alternative_and_compared_with_its_base():
    text = verdict(receipt(recipe={"name": "sft"}, sft_cost=None))
    assert text.startswith(
        "Plain fine-tuning, the obvious alternative itself. hint: ahead of the pretrained base model in verified"
    )
    assert "FLOPs" not in text


def test_without_an_sft_cell_no_win_is_claimed():
    made = receipt()
    made["scores"][0]["against"] = {"base": made["scores"][0]["against"]["base"]}
    assert verdict(made).startswith("Whether it beats SFT at the same budget is not known")
    assert verdict(receipt(headline=None, scores=[])) == "This model has no score, so nothing is known of its quality."


PART = {"name": "small", "kind": "hf", "path": "org/small-1B", "revision": "0123abc", "license": "Apache-2.0"}
FULL = {
    "cell": "f" * 64,
    "grid": "g",
    "lost": [],
    "deployment": [],
    "student": PART,
    "teacher": PART | {"name": "big|one", "distillation_allowed": "unknown", "quantise": None},
    "data": {
        "corpus": "tulu3",
        "data_set": "allenai/tulu-3-sft-mixture",
        "revision": "abc",
        "data_frac": 0.1,
        "rows": 30,
        "validation_rows": 3,
        "sources": [{"source": "no_robots", "rows": 30, "license": "CC-BY-NC-4.0", "flag": "non-commercial"}],
        "written": {"labels": 40},
    },
    "licences": {"says": "not for commercial use", "reasons": ["data, non-commercial: no_robots"]},
    "tuned": {},
    "data_seed": 0,
    "train_seed": 0,
    "world_seed": 0,
    "teacher_seed": 0,
    "scored_on": {},
    "warnings": ["something: odd"],
    "missing": ["not measured in bf16"],
    "provenance": {
        "machine": {"gpu": None, "processes": 1},
        "hardware": {"cpu": "a cpu", "machine": "x86_64", "cores": 2},
        "commits": {"c0ffee": 3},
        "changed_stages": 0,
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "trl": None},
        "trained": 1.7e9,
        "weights_sha256": {"model.safetensors": "ab"},
    },
}


def test_the_front_matter_is_a_model_card_the_hub_reads(tmp_path):
    from huggingface_hub import ModelCard, metadata_load

    made = receipt(**FULL)
    made["scores"].append({**made["scores"][0], "eval": "gsm8k", "metric": "exact_match", "score": 0.25})
    path = tmp_path / "RECEIPT.md"
    path.write_text(card_text(made))
    card = ModelCard.load(path, ignore_metadata_errors=False).data
    assert metadata_load(path)["library_name"] == "transformers" and card.pipeline_tag == "text-generation"
    assert (card.license, card.base_model, card.datasets) == ("other", "org/small-1B", ["allenai/tulu-3-sft-mixture"])
    results = {(one.dataset_type, one.dataset_config, one.metric_type): one.metric_value for one in card.eval_results}
    assert results == {
        ("allenai/tulu-3-sft-mixture", "verified", "accuracy"): pytest.approx(0.55),
        ("openai/gsm8k", "gsm8k", "exact_match"): 0.25,
    }
    assert card.model_name == "kd-weak-0.1-s0"
    assert (card["license_name"], card["license_link"]) == ("not-for-commercial-use", "RECEIPT.md")
    assert card["base_model_relation"] == "finetune" and card.tags == ["harness", "kd", "knowledge-distillation"]


def test_a_model_without_a_score_has_a_card_without_results():
    from huggingface_hub import ModelCard

    made = receipt(**FULL, headline=None, scores=[])
    card = ModelCard(card_text(made), ignore_metadata_errors=False).data
    assert card.eval_results is None and card.library_name == "transformers"
    assert card.to_dict().keys() & {"model_name", "model-index"} == set()


def test_two_metrics_of_one_evaluation_keep_their_names_and_values():
    from huggingface_hub import ModelCard

    made = receipt(**FULL)
    made["scores"].append({**made["scores"][0], "metric": "exact_match", "score": 0.25})
    results = ModelCard(card_text(made)).data.eval_results
    assert [(one.metric_name, one.metric_value) for one in results] == [
        ("verified accuracy", pytest.approx(0.55)),
        ("verified exact_match", 0.25),
    ]
    assert {one.dataset_name for one in results} == {"held-out rows of tulu3"}


def test_a_card_is_no_reason_to_import_the_hubs_library_before_one_is_written():
    code = "import sys, harness.grid, harness.report.model_card; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_text_names_what_a_reader_must_know():
    text = card_text(receipt(**FULL))
    for words in (
        "| no_robots | 30 | CC-BY-NC-4.0 | non-commercial |",
        "distillation allowed: unknown",
        "**By what is stated: not for commercial use.**",
        "something: odd",
        "not measured in bf16",
        "c0ffee (3 stages)",
        "labels 40",
        "revision=0123abc",
    ):
        assert words in text


def test_a_macro_average_is_explained_and_is_no_result_of_one_data_set():
    made = receipt(**FULL)
    one = made["scores"][0]
    gsm8k = {**one, "eval": "gsm8k", "metric": "exact_match@lm-eval-0.4.13/177d0e"}
    made["scores"] = [one, gsm8k, {**one, "eval": "macro_average", "metric": "rescaled"}]
    made["headline"] = {"eval": "macro_average", "metric": "rescaled"}
    text = card_text(made)
    assert "in macro_average rescaled: +0.050" in text and "| macro_average rescaled |" in text
    assert "macro_average is the mean over gsm8k, each of the same weight" in text
    front = text.split("---")[1]
    assert "macro_average" not in front and "type: openai/gsm8k" in front


def test_a_model_without_the_primary_metric_is_not_compared_by_another():
    made = receipt(headline={"eval": "macro_average", "metric": "rescaled"})
    assert verdict(made) == (
        "This model has no score in the primary metric, macro_average rescaled, so it is not compared with SFT."
    )


def test_a_cost_that_left_the_store_is_named_and_not_divided_by():
    made = receipt()
    made["sft_cost"] = {name: dict.fromkeys(cost, 0.0) for name, cost in made["cost"].items()}
    assert "what training SFT took is not known, because its artifact has left the store" in verdict(made)
    made["cost"], made["sft_cost"] = made["sft_cost"], made["cost"]
    assert "what training the model took is not known" in verdict(made)


def test_names_and_texts_are_shown_as_they_are_and_not_read_as_html_or_markdown():
    hostile = "<script>x</script> a|b `c` [d](javascript:e) ![f](g) \\|\nh & <img src=x onerror=y>"
    shown = inert(hostile)
    assert shown == (
        "&lt;script&gt;x&lt;/script&gt; a\\|b \\`c\\` [d]\\(javascript:e) \\!\\[f]\\(g) \\\\\\| h &amp; "
        "&lt;img src=x onerror=y&gt;"
    )
    made = receipt(**FULL) | {"warnings": [hostile], "missing": [hostile], "budget": {"label": hostile}}
    made |= {"teacher": PART | {"name": hostile, "license": hostile, "distillation_allowed": "no", "quantise": None}}
    made |= {"student": PART | {"name": hostile, "license": hostile}, "recipe": {"name": "kd", "text": hostile}}
    made["data"] = FULL["data"] | {"corpus": hostile, "revision": hostile, "written": {hostile: 1}}
    made["data"] |= {"sources": [{"source": hostile, "rows": 1, "license": hostile, "flag": hostile}]}
    made["licences"] = {"says": "nothing stated stands against use", "reasons": []}
    card = card_text(made)
    assert "<script" not in card and "<img" not in card and "](javascript" not in card
    rows = [line for line in card.splitlines() if line.startswith("| &lt;script")]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows] == [5]
