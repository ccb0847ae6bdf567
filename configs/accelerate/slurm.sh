#!/usr/bin/env bash
# sbatch --nodes 2 configs/accelerate/slurm.sh PRESET [--field.sub value …]
# One torchrun for each node, one process for each of its GPUs. The same command again goes on where a run was stopped.
# Configured, not run on a cluster; a test runs it on one node with two processes on its CPUs.
#SBATCH --job-name=leaplm
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
set -euo pipefail
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc_per_node "${PROCESSES:-8}" \
  --rdzv_id "$SLURM_JOB_ID" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$head_node:${PORT:-29500}" \
  -m leaplm train "$@"
