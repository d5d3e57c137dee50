"""A grid whose models the hub does not give: its attempts, status and records show the one sentence, and no token."""

import json

import harness.api as harness
from harness import grid
from harness.config.machine import Launch
from tests.doubles import save_tiny
from tests.fake_hub import FakeHub, Repository

SECRET = "hf_abcdefghijklmnop"


def test_a_gated_student_and_a_missing_teacher_are_shown_by_status_in_one_sentence(tmp_path, monkeypatch, capsys):
    rows = [{"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")]} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = tmp_path / "store"
    cells = harness.grid(
        method="logit_kd",
        corpus="jsonl",
        corpus__path=str(tmp_path / "rows.jsonl"),
        corpus__least_heldout_rows=12,
        student="hf",
        student__path="org/gated",
        teacher="hf",
        teacher__path="org/none",
    )
    with FakeHub({"org/gated": Repository(save_tiny(tmp_path / "tiny"), "gated")}) as hub:
        hub.use(monkeypatch, tmp_path / "cache", SECRET)
        finished = harness.run(cells, str(store), launch=Launch(kind="inline"))
        page = f"{hub.url}/org/gated"
    capsys.readouterr()
    assert grid.main(["--store", str(store), "status", finished.grid]) == 0
    shown = capsys.readouterr().out
    assert (
        f"student.path='org/gated' cannot be run: its licence must be accepted first (403); accept it at {page}"
        in shown
    )
    reasons = [json.loads(file.read_text())["reason"] or "" for file in store.rglob("attempts/*/*.json")]
    missing = "teacher.path='org/none' cannot be run: the hub has no such model"
    assert any(reason.startswith(missing) for reason in reasons)
    assert SECRET in hub.tokens, "the token is used"
    written = [file for folder in (store, tmp_path / "cache") for file in folder.rglob("*") if file.is_file()]
    assert not [file for file in written if SECRET.encode() in file.read_bytes()] and SECRET not in shown
