"""Runs the public benchmarks of `benchmarks/` with EleutherAI's lm-evaluation-harness (lm-eval)."""
