"""Grading: whether an answer is right. Mathematics, IFEval's instructions, programs in a sandbox."""
