#!/usr/bin/env bash
# Train on a TPU pod slice of several hosts, through a queued resource:
#   launch/tpu_pod.sh --name NAME --zone ZONE --type v5litepod-16 --bucket B [--project P] [--version V] [--spot]
#     [--dry-run] -- --config configs/sdxl.py:v5e-16 --config.init_from=bucket/models/sdxl \
#     --config.data.path=bucket/data/train --workdir bucket/runs/x
# requests the slice unless it exists, waits until it is granted, copies this checkout to all hosts, installs it, and
# trains on all of them, with restarts after failures. The bucket is mounted at ~/bucket on every host, because all
# hosts must be able to write checkpoints. After a preemption run it again: it requests the slice again, and the
# training resumes from the newest checkpoint. --delete returns the slice instead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/tpu_common.sh
. "$here/tpu_common.sh"

parse_tpu_options "$@"
queued=(gcloud compute tpus queued-resources)
if [ -n "$delete" ]; then
  run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet
  exit
fi
[ -n "$bucket" ] || fail "a pod's hosts share no disk: --bucket is needed for checkpoints"

state() { "${queued[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || true; }

current=""
[ -n "$DRY_RUN" ] || current=$(state)
case "$current" in
  SUSPENDED | SUSPENDING | FAILED) # preempted, or never granted: such a request cannot recover, so make a new one
    run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet
    current=""
    ;;
esac
if [ -z "$current" ]; then
  run "${queued[@]}" create "$name" --node-id "$name" "${where[@]}" \
    --accelerator-type "$type" --runtime-version "$version" "${spot[@]}"
fi
until [ -n "$DRY_RUN" ] || [ "$(state)" = ACTIVE ]; do
  case "$(state)" in
    FAILED | SUSPENDED) fail "the request $name was not granted: see gcloud compute tpus queued-resources describe" ;;
  esac
  echo "# waiting for $name: $(state)" >&2
  sleep 30
done
install_on_workers
train_on_workers --multihost
