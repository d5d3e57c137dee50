"""corpus: evaluations on the corpus's own held-out rows, one kind a file."""
