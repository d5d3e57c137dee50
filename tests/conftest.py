"""Every test runs offline, on one thread, and away from the user's folders."""

import os

import pytest

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


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two test workers share two cores; more threads each only fight."""
    import torch

    torch.set_num_threads(1)
