#!/bin/bash

# Parameters
#SBATCH --account=me
#SBATCH --array=0-1%2
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=2
#SBATCH --dependency=afterok:101_0:100
#SBATCH --error=STORE/submissions/NAME/slurm/%A_%a_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=g.cells.NAME.2
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=4096MB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=STORE/submissions/NAME/slurm/%A_%a_0_log.out
#SBATCH --partition=low
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
export PYTHONPATH=STORE/code/HASH${PYTHONPATH:+:$PYTHONPATH}
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output STORE/submissions/NAME/slurm/%A_%a_%t_log.out --error STORE/submissions/NAME/slurm/%A_%a_%t_log.err --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit STORE/submissions/NAME/slurm
