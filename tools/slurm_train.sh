#!/usr/bin/env bash
# Train under Slurm, with the arguments and variables of mmseg:
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#   GPUS (4), GPUS_PER_NODE (4), CPUS_PER_TASK (5), SRUN_ARGS
# On nodes without GPUs GPUS counts processes, and SRUN_ARGS=--gres=none asks for
# none.
set -eu
partition=$1
job_name=$2
config=$3
shift 3
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
srun -p "$partition" \
    --job-name="$job_name" \
    --gres="gpu:${GPUS_PER_NODE:-4}" \
    --ntasks="${GPUS:-4}" \
    --ntasks-per-node="${GPUS_PER_NODE:-4}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
