"""Evaluations on a corpus's own held-out rows, one kind a file; what such a file holds is in
`harness/evals/__init__.py`.
"""
