"""Evaluations on a corpus's own held-out rows, one a file; `harness/evals/__init__.py` describes such a file."""
