#!/usr/bin/env bash
# SFT of an 8B model on two nodes of eight GPUs: MODEL=... DATA=... OUTPUT=... sbatch examples/cluster/sft.slurm.sh
#
# One process a GPU: JAX gives each task of a node one of its GPUs. So no --gpus-per-task, which would hide the others.
#SBATCH --job-name=jaxalign-sft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Five minutes before the time is over, to save and to stop; and back into the queue where a node fails.
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

: "${MODEL:?a model folder that every node can read}"
: "${DATA:?a data file that every node can read}"
: "${OUTPUT:?a run folder on storage that all nodes share}"

status=0
srun --kill-on-bad-exit=1 jaxalign sft \
  --distributed=true \
  --model.path="$MODEL" \
  --data.train="$DATA" \
  --mesh.fsdp=16 \
  --model.remat=full \
  --train.packing=true \
  --train.batch_size=16 \
  --run.output="$OUTPUT" \
  --run.save_every=200 \
  --run.resume=true || status=$?

# Stopped by the signal with a checkpoint saved: the job goes on from there when its turn comes again.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
