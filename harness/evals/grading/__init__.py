"""grading: whether an answer is right."""
