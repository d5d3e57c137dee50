"""Grading: whether an answer is right; mathematics, IFEval's instructions, programs in a sandbox."""
