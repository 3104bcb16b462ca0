#!/bin/sh
# Nodes of dpwa on one or several hosts, under torchrun: the same command on each host. When a process fails, torchrun
# starts all again, and they go on from their checkpoints. docs/launching.md says what is tried.
#
#     sh samples/torchrun.sh train.py --epochs 10
#     HOSTS=2 HEAD=first.example.org:29400 sh samples/torchrun.sh train.py --epochs 10
set -eu

# A cluster file without nodes: settings alone, such as
#     checkpoint: {every_s: 60}
export DPWA_CONFIG="${DPWA_CONFIG:-settings.yaml}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Without it, gloo meets the addresses of processes that have ended when torchrun starts them again (seen with torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# The run folder has the job's name: a start with the same name goes on where the last one was.
exec torchrun --nnodes "${HOSTS:-1}" --nproc-per-node "${PROCESSES:-2}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-endpoint "${HEAD:-127.0.0.1:29400}" --rdzv-id "${JOB:-first}" "$@"
