"""A rehearsal keeps what decides the stages of a paper experiment, and changes only what costs."""

from dataclasses import asdict
from pathlib import Path

import pytest

from harness.config.checks import SettingsError
from harness.plan.compose import compose, presets_folder
from harness.plan.rehearsal import BATCH, ITEMS, SERVER, rehearsed
from harness.stand_ins import LICENSE

SLUGS = sorted(path.stem for path in (presets_folder() / "experiments" / "paper").glob("*.yaml"))

FOLDER = Path("/stand_ins")


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch):
    monkeypatch.setattr("harness.plan.compose.ensure", lambda root: FOLDER)


def kept(cell):
    """What a rehearsal keeps of a cell."""
    phases = [{**asdict(phase), "synthetic_rows": 0} for phase in cell.method.phases()]
    teacher = (cell.teacher.name, cell.teacher.kind, cell.teacher.quantise, cell.teacher.data_frac)
    lessons = [(one.budget.kind, one.loss_on) for one in cell.teacher.lessons]
    names = (cell.student.name, cell.student.chat_template, cell.teacher.chat_template)
    data = (cell.data_frac, cell.corpus.domains, cell.corpus.sources, cell.corpus.answers)
    scored = (cell.evals.names, cell.evals.precision, cell.evals.overlap, cell.measure)
    return phases, teacher, lessons, names, data, scored, cell.signal, cell.budget.kind, cell.budget.precision


@pytest.mark.parametrize("slug", SLUGS)
def test_structure_is_that_of_the_paper_preset_and_models_rows_items_and_lengths_are_small(slug):
    paper = compose([f"experiments={slug}", "scale=paper"]).cells
    cells = rehearsed(paper, FOLDER)
    first = [cell for cell in paper if cell.seed == min(one.seed for one in paper)]
    assert [kept(cell) for cell in cells] == [kept(cell) for cell in first]
    for cell in cells:
        models = [cell.student, *([cell.teacher] if cell.teacher.kind != "none" else [])]
        for model in models:
            files = model.tokenizer if model.kind == "http" else model.path
            assert files.startswith("/stand_ins/models/") and model.license == LICENSE
            assert model.kind != "http" or model.path == SERVER
        assert cell.corpus.path == "/stand_ins/tulu-3-sft-mixture" and cell.corpus.max_length <= 256
        assert (cell.evals.limit, cell.evals.data_dir) == (ITEMS, "/stand_ins/benchmarks")
        assert {one.batch_size for one in (cell.budget, *(lesson.budget for lesson in cell.teacher.lessons))} == {BATCH}


def test_the_scale_is_chosen_on_the_command_line_and_names_the_grid():
    paper, rehearsal = (compose(["experiments=strong_teacher", f"scale={scale}"]) for scale in ("paper", "rehearsal"))
    assert rehearsal.cells == rehearsed(paper.cells, FOLDER)
    assert rehearsal.settings.claims == paper.settings.claims and rehearsal.settings.claims
    assert rehearsal.settings.experiments == "strong_teacher_rehearsal"


def test_a_served_teacher_is_asked_at_the_stand_ins_server():
    served = ["teacher=served", "teacher.path=http://node7:8000", "teacher.api_key_env=VLLM_API_KEY"]
    served += [f"teacher.{name}=allenai/Llama-3.1-Tulu-3-70B-SFT" for name in ("served_model", "tokenizer")]
    experiment = ["experiments=data_scaling", "scale=rehearsal"]
    cell = compose([*experiment, "method=seq_kd", *served]).cells[0]
    assert (cell.teacher.path, cell.teacher.api_key_env) == (SERVER, None)
    assert cell.teacher.served_model == "allenai/Llama-3.1-Tulu-3-70B-SFT"
    assert cell.teacher.tokenizer == "/stand_ins/models/allenai--Llama-3.1-Tulu-3-70B-SFT"


def test_a_model_without_a_stand_in_is_refused_by_its_setting():
    with pytest.raises(SettingsError, match=r"student\.path='org/other' .*no stand-in"):
        compose(["experiments=data_scaling", "scale=rehearsal", "student=hf", "student.path=org/other"])


def test_only_experiments_of_the_papers_scale_can_be_rehearsed():
    with pytest.raises(SettingsError, match=r"experiments='real_smollm2' .*scale=rehearsal needs one of"):
        compose(["experiments=real_smollm2", "scale=rehearsal"])
    with pytest.raises(SettingsError, match=r"scale='huge' .*mini, paper, rehearsal"):
        compose(["experiments=data_scaling", "scale=huge"])
