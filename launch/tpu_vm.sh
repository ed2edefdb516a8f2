#!/usr/bin/env bash
# Train on one TPU VM (v5litepod-8 and smaller, v4-8, v6e-8 …):
#   launch/tpu_vm.sh --name NAME --zone ZONE --type v5litepod-8 [--project P] [--version V] [--spot]
#     [--bucket B] [--dry-run] -- --config configs/sd15.py:v5e-8 --config.init_from=bucket/models/sd15 \
#     --config.data.path=bucket/data/train --workdir bucket/runs/x
# creates the VM unless it exists, copies this checkout, installs it, and trains, with restarts after failures. With
# --bucket the bucket is mounted at ~/bucket, so --workdir bucket/runs/x outlives the VM. The same command resumes from
# the newest checkpoint. --delete deletes the VM instead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/tpu_common.sh
. "$here/tpu_common.sh"

parse_tpu_options "$@"
if [ -n "$delete" ]; then
  run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  exit
fi
if exists gcloud compute tpus tpu-vm describe "$name" "${where[@]}"; then
  echo "# $name already exists" >&2
else
  run gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
    --accelerator-type "$type" --version "$version" "${spot[@]}"
fi
install_on_workers
train_on_workers ""
