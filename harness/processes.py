"""Processes: which of several processes of one training run this is, as `torchrun` says it in the environment.

Every process runs the same stage; the first alone claims, logs, keeps checkpoints and publishes.
"""

import os


def process_count() -> int:
    """Processes that train one model together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0"))
