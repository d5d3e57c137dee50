"""False alarms of an A/A grid: rare where only the training seed differs, certain where something else does."""

import numpy as np
import pandas as pd

from analysis.false_alarms import false_alarms


def aa_grid(shift=0.0):
    """600 items under 4 data seeds x 3 training seeds; each right with its own probability, `shift` for seed 2."""
    random = np.random.default_rng(0)
    ease = random.uniform(0.1, 0.8, 600)
    rows = [
        pd.DataFrame(
            {
                "source": np.where(np.arange(600) % 2, "sum", "capital"),
                "id": [f"i{i}" for i in range(600)],
                "data_seed": data,
                "train_seed": train,
                "score": (random.random(600) < ease + (shift if train == 2 else 0)).astype(float),
            }
        )
        for data in range(4)
        for train in range(3)
    ]
    return pd.concat(rows)


def test_training_seeds_alone_rarely_claim():
    found = false_alarms(aa_grid(), 3)
    assert len(found) == 4 * 3 and found["claims"].mean() <= 0.2
    assert ((found["low"] < found["gain"]) & (found["gain"] < found["high"])).all()


def test_a_seed_that_is_truly_better_is_claimed():
    found = false_alarms(aa_grid(shift=0.2), 4)
    against = found[found["against"] == 2]
    assert against["claims"].all() and (against["gain"] < -0.1).all()
    assert not found[found["against"] != 2]["claims"].any()
