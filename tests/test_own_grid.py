"""A user's own rows and models: from a JSON lines file and two Hugging Face folders to the same report."""

import json

import harness.api as harness
from tests.doubles import save_tiny

WORDS = ("red", "blue", "green", "small", "round", "warm")


def test_own_rows_student_and_teacher_end_in_the_same_report(tmp_path):
    rows = tmp_path / "rows.jsonl"
    talks = [
        [{"role": "user", "content": f"Say {one} and {other}."}, {"role": "assistant", "content": f"{one}, {other}"}]
        for one in WORDS
        for other in WORDS
    ]
    rows.write_text(
        "".join(
            json.dumps({"id": f"r{n}", "messages": talk, "source": f"list{n % 2}"}) + "\n"
            for n, talk in enumerate(talks)
        )
    )
    cells = harness.grid(
        corpus="jsonl",
        corpus__path=str(rows),
        corpus__heldout_rows=8,
        student="hf",
        student__path=str(save_tiny(tmp_path / "student", seed=1)),
        teacher="hf",
        teacher__path=str(save_tiny(tmp_path / "teacher", seed=2, layers=3)),
        method=["sft", "logit_kd"],
        data_frac=[0.5, 1.0],
        seed=[0],
        budget__amount=2,
        budget__batch_size=4,
        evals__names=[["heldout"]],
        measure__formats=[[]],
    )
    finished = harness.run(cells, store=str(tmp_path / "store"), grid="mine")
    assert not finished.failed
    page, markdown, *_ = harness.report("mine", store=str(tmp_path / "store"))
    for text in (page.read_text(), markdown.read_text()):
        assert "logit_kd" in text and "heldout" in text and "jsonl" in text
        assert "undecided" in text and "hint: " in text and "(one seed)" in text and "distil with" not in text
    assert len(list((tmp_path / "store" / "models" / "mine").glob("*/RECEIPT.md"))) == 4
    outcome = harness.read("mine", store=str(tmp_path / "store"))
    assert set(outcome.results["status"]) == {"done"}
    assert set(outcome.summary["role"]) == {"student", "base", "teacher"}
