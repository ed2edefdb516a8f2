#!/usr/bin/env bash
# Train on GKE through xpk, on one or several slices:
#   launch/gke_xpk.sh --cluster C --zone ZONE --type v5litepod-16 --image IMAGE --bucket B [--slices N] [--project P]
#     [--name NAME] [--dry-run] -- --config configs/sdxl.py:v5e-16 --config.init_from=/bucket/models/sdxl \
#     --config.data.path=/bucket/data/train --workdir /bucket/runs/x
# creates a workload that installs this checkout on a base image with Python 3.11, mounts the bucket at /bucket with
# the cluster's GCS FUSE driver (a storage object of xpk, created once), and trains on all hosts together. xpk restarts
# it up to 10 times; every start resumes from the newest checkpoint. --delete deletes the workload instead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

parse_options "cluster zone type image bucket slices name project" "delete" "$@"
require cluster zone
name=${option[name]:-realcustom}
where=(--cluster "${option[cluster]}" --zone "${option[zone]}")
[ -z "${option[project]:-}" ] || where+=(--project "${option[project]}")
require_command xpk "it creates workloads on GKE (pip install xpk)"
if [ -n "${option[delete]:-}" ]; then
  run xpk workload delete "${where[@]}" --workload "$name"
  exit
fi
require type image bucket
require_arguments

# rename-dir-limit: a checkpoint is finished by renaming its folder, which gcsfuse allows only up to a number of files.
storage=${name}-bucket
if [ -n "$DRY_RUN" ] || ! xpk storage list "${where[@]}" 2>/dev/null | grep -qw "$storage"; then
  run xpk storage create "$storage" "${where[@]}" --type gcsfuse --bucket "${option[bucket]#gs://}" \
    --mount-point /bucket --auto-mount true --readonly false --size 1000 \
    --mount-options rename-dir-limit=200000,implicit-dirs
fi
line="pip install -q -e '.[tpu]' && exec $(quoted python -m realcustom_jax.train --multihost "${arguments[@]}")"
run xpk workload create "${where[@]}" --workload "$name" --tpu-type "${option[type]}" --num-slices "${option[slices]:-1}" \
  --base-docker-image "${option[image]}" --script-dir "$here/.." --max-restarts 10 --command "$line"
