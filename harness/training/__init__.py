"""training: one trainer for every method."""
