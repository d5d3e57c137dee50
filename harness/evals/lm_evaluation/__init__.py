"""lm_evaluation: the bridge to lm-evaluation-harness."""
