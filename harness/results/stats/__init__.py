"""stats: intervals and fits, pure functions with stated shapes."""
