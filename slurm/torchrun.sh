#!/usr/bin/env bash
# One torchrun per node of this SLURM job: torchrun.sh NODES PROCESSES_PER_NODE CPUS gpu|cpu ARGUMENTS...
# The step states its geometry again because the job's shell sees none of it.
set -euo pipefail
nodes=$1 processes=$2 cpus=$3 kind=$4
shift 4
list=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *NodeList=//p' | sed -n 1p)
first=$(scontrol show hostnames "$list" | sed -n 1p)
address=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
port=$((20000 + SLURM_JOB_ID % 12000))  # below 32768, where the system gives ports away
gpus=()
if [ "$kind" = gpu ]; then gpus=(--gpus-per-node="$processes"); fi
exec srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" \
  "${gpus[@]}" --kill-on-bad-exit=1 \
  torchrun --nnodes="$nodes" --nproc-per-node="$processes" --rdzv-backend=c10d \
  --rdzv-endpoint="$address:$port" --rdzv-id="$SLURM_JOB_ID" -m brainlm "$@"
