"""Statistics: intervals, tests and fits, pure functions with stated shapes; no files, no records."""
