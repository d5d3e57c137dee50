"""Fixtures of the stages' tests."""

import pytest

from tests.stages.small_world import small_world


@pytest.fixture
def world(tmp_path):
    """A start model, a teacher, a mixture and a subset of it, as folders by role of input."""
    return small_world(tmp_path)
