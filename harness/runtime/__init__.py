"""runtime: facts of the running process."""
