"""Every test runs offline, on one thread, and away from the user's folders."""

import multiprocessing
import os
from multiprocessing import forkserver

import pytest

from harness.runtime import preemption

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}.items():
    os.environ.setdefault(name, value)


LONG = (
    "test_whole_cell.py",
    "test_real_tokenizers.py",
    "test_executor.py",
    "test_crash_points.py",
    "test_conventions.py",
    "test_alignment.py",
    "test_own_grid.py",
    "test_wandb_run.py",
    "test_tuning.py",
    "test_processes.py",
)


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that no worker is left alone with one in the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two test workers share two cores; more threads each only fight."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_stop_requested():
    """A stop that one test requests does not reach the next."""
    yield
    preemption._stop_requested = False


@pytest.fixture(scope="module")
def forked():
    """Starts processes that are forked from a server with modules imported already; the server is a test file's own."""

    def server(*modules):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(modules))  # of no effect on a server that runs
        return context

    yield server
    forkserver._forkserver._stop()


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """The stand-ins of rehearsals, made once for all test workers."""
    from harness.stand_ins import ensure

    base = tmp_path_factory.getbasetemp()
    return ensure((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "rehearsal")
