#!/usr/bin/env bash
# Train on GKE through xpk, on one or several slices:
#   launch/gke_xpk.sh --cluster C --zone ZONE --type v5litepod-16 --image IMAGE --bucket B [--slices N] [--project P]
#     [--name NAME] [--dry-run] -- --config configs/sdxl.py --workdir /bucket/runs/x
# sends a workload that installs this checkout on a base image with Python 3.11, mounts the bucket at /bucket through
# the cluster's GCS FUSE driver (a storage object of xpk, made once), and trains on all hosts together. xpk restarts
# it up to 10 times; every start goes on from the newest checkpoint. --delete deletes the workload instead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

cluster="" zone="" type="" image="" bucket="" slices=1 name=realcustom delete="" project=()
while [ $# -gt 0 ]; do
  case "$1" in
    --cluster) value "$@"; cluster=$2; shift 2 ;;
    --zone) value "$@"; zone=$2; shift 2 ;;
    --type) value "$@"; type=$2; shift 2 ;;
    --image) value "$@"; image=$2; shift 2 ;;
    --bucket) value "$@"; bucket=${2#gs://}; shift 2 ;;
    --slices) value "$@"; slices=$2; shift 2 ;;
    --name) value "$@"; name=$2; shift 2 ;;
    --project) value "$@"; project=(--project "$2"); shift 2 ;;
    --delete) delete=yes; shift ;;
    --dry-run) DRY_RUN=yes; shift ;;
    --help | -h) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown option $1; the arguments of the training come after --" ;;
  esac
done
if [ -z "$cluster" ] || [ -z "$zone" ]; then fail "--cluster and --zone are needed"; fi
where=(--cluster "$cluster" --zone "$zone" "${project[@]}")
need xpk "it sends workloads to GKE (pip install xpk)"
if [ -n "$delete" ]; then
  run xpk workload delete "${where[@]}" --workload "$name"
  exit
fi
if [ -z "$type" ] || [ -z "$image" ] || [ -z "$bucket" ]; then fail "--type, --image and --bucket are needed"; fi
[ $# -gt 0 ] || fail "there are no arguments for the training after --"

storage=${name}-bucket
if [ -n "$DRY_RUN" ] || ! xpk storage list "${where[@]}" 2>/dev/null | grep -qw "$storage"; then
  run xpk storage create "$storage" "${where[@]}" --type gcsfuse --bucket "$bucket" \
    --mount-point /bucket --auto-mount true --readonly false --size 1000 \
    --mount-options rename-dir-limit=200000,implicit-dirs
fi
line="pip install -q -e '.[tpu]' && exec $(quoted python -m realcustom_jax.train --multihost "$@")"
run xpk workload create "${where[@]}" --workload "$name" --tpu-type "$type" --num-slices "$slices" \
  --base-docker-image "$image" --script-dir "$here/.." --max-restarts 10 --command "$line"
