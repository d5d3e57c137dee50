"""Experiments: every file spans a grid that can be planned, its claims name arms of it, and it has a page."""

import pytest

from harness.claims import declare
from harness.compose import compose, presets_folder
from harness.plan import Plan
from harness.record import freeze
from harness.store import Store

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
    assert composed.settings.experiments == slug


@pytest.mark.parametrize("slug", SLUGS)
def test_an_experiment_has_a_page_that_says_what_was_expected_and_how_to_run_it(slug):
    page = (FOLDER / f"{slug}.md").read_text()
    page += (FOLDER / f"{slug.removesuffix('_aa')}.md").read_text()  # the A/A grid is told on the page of controls
    assert ("Expectation" in page or "data_scaling_two_draws.md" in page) and f"experiments={slug}" in page


def test_the_headline_experiments_have_five_draws_of_two_seeds():
    for slug in HEADLINE:
        cells = compose([f"experiments={slug}"]).cells
        assert {(cell.world_seed, cell.teacher_seed) for cell in cells} == {(draw, draw) for draw in range(5)}
        assert {cell.seed for cell in cells} == {0, 1}
