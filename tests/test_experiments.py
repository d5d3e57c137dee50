"""Experiments: every file spans a grid that can be planned, its claims name arms of it, and it has a page."""

import pytest

from harness.config.cluster import Cluster
from harness.plan.cell_plan import Plan
from harness.plan.claims import declare
from harness.plan.compose import compose, presets_folder
from harness.plan.estimate import plan_rows
from harness.plan.frozen import freeze
from harness.store.store import Store

FOLDER = presets_folder() / "experiments"
SLUGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
HEADLINE = ("data_scaling", "strong_teacher", "two_stage")
EXPLORED = ("controls", "controls_aa", "cross_tokenizer", "data_scaling_clean", "data_scaling_epochs")
EXPLORED += ("data_scaling_two_draws", "methods_low_data", "real_smollm2")  # run before claims had a file
OUTSIDE = ("cross_tokenizer", "real_smollm2")  # on rows and models that are not in the repository


@pytest.mark.parametrize("slug", [slug for slug in SLUGS if slug not in OUTSIDE])
def test_an_experiments_claims_name_arms_of_its_grid(slug, tmp_path):
    composed = compose([f"experiments={slug}", *(["draws=1"] if slug in HEADLINE else [])])
    frozen = freeze(Plan.of(composed.cells), slug)
    declare(Store.open(tmp_path), frozen, composed.settings.claims)  # refuses what names no arm, or several
    assert bool(composed.settings.claims) == (slug not in EXPLORED)
    assert composed.settings.experiments == slug and len(composed.cells) > 1


@pytest.mark.parametrize("slug", SLUGS)
def test_an_experiment_has_a_page_that_says_what_was_expected_and_how_to_run_it(slug):
    page = (FOLDER / f"{slug}.md").read_text()
    page += (FOLDER / f"{slug.removesuffix('_aa')}.md").read_text()  # the A/A grid is told on the page of controls
    assert ("Expectation" in page or "data_scaling_two_draws.md" in page) and f"experiments={slug}" in page


@pytest.mark.parametrize("slug", sorted(path.stem for path in (FOLDER / "paper").glob("*.yaml")))
def test_an_experiment_at_the_papers_scale_is_planned_offline_and_priced_in_gpu_hours(slug, tmp_path):
    composed = compose([f"experiments={slug}", "scale=paper", "slurm=example_a100"])
    plan, store = Plan.of(composed.cells), Store(tmp_path)
    declare(store, freeze(plan, slug), composed.settings.claims)
    rows = plan_rows(plan, store, Cluster.of(composed.settings.slurm))
    priced = {row["kind"]: row["gpu_hours"] for row in rows}
    assert priced["train"] > 1 and priced["evaluate"] > 1 and priced["subset"] == 0
    assert (FOLDER / f"{slug}.yaml").is_file() and composed.settings.experiments == f"{slug}_paper"
    assert {cell.student.kind for cell in composed.cells} == {"hf"}


def test_the_headline_experiments_have_five_draws_of_two_seeds():
    for slug in HEADLINE:
        cells = compose([f"experiments={slug}"]).cells
        assert {(cell.world_seed, cell.teacher_seed) for cell in cells} == {(draw, draw) for draw in range(5)}
        assert {cell.seed for cell in cells} == {0, 1}
