"""Slurm: a plan as job arrays: submission, tasks, servers of models, the queue, accounting."""
