"""The stand-ins, made once for the tests of this folder."""

import pytest

from harness.stand_ins.make import make


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand_ins") / "all"
    make(folder)
    return folder
