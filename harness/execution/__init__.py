"""execution: running a plan."""
