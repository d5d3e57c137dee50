"""Losses: what a training step minimises.

Divergences between next-token distributions, with the whole vocabulary, with top-k or sampled logits (`sparse.py`)
or across tokenizers; losses on hidden states; controls. `objectives.py` picks the one that a recipe names.
"""
