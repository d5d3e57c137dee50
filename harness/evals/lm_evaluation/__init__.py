"""The bridge to EleutherAI's lm-evaluation-harness, which runs the public benchmarks of `benchmarks/`."""
