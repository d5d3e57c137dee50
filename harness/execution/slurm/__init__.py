"""slurm: running a plan on a cluster."""
