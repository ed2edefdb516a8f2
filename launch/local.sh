#!/usr/bin/env bash
# Train like several hosts, on this machine's CPU:
#   launch/local.sh --processes 2 --devices 4 [--dry-run] -- --config configs/tiny.py --workdir runs/two
# starts this many processes, each with this many simulated devices, connected over the loopback interface. The output
# of the first process is shown; that of the others goes to runs/two/process_N.log. If one process fails, all are
# stopped and the script exits with its status. SIGTERM goes to all. The same command resumes from the newest
# checkpoint.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

parse_options "processes devices" "" "$@"
processes=${option[processes]:-2} devices=${option[devices]:-4}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes must be a whole number of at least 1, not $processes"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices must be a whole number of at least 1, not $devices"
require_arguments
set -- "${arguments[@]}"

# Use the environment that make installed, otherwise the python on the path.
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=$here/../.venv/bin/python
  [ -x "$python" ] || python=python3
fi
"$python" -c 'import realcustom_jax' 2>/dev/null || fail "$python has no realcustom_jax: run make, or set PYTHON"

# The logs go into the training's workdir, so it must be found among its arguments.
workdir=""
for ((i = 1; i <= $#; i++)); do
  case "${!i}" in
    --workdir=*) workdir=${!i#*=} ;;
    --workdir) j=$((i + 1)); workdir=${!j:-} ;;
  esac
done
[ -n "$workdir" ] || fail "the training's arguments have no --workdir"
[[ $workdir != *://* ]] || fail "the workdir $workdir is an address, not a folder: mount the bucket first"

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes
# Processes that share cores may wait for each other for a long time.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices --xla_cpu_collective_timeout_seconds=600"
echo "$processes processes with $devices devices each, at $JAX_COORDINATOR_ADDRESS" >&2
[ -n "$DRY_RUN" ] || mkdir -p "$workdir"

pids=() stopping=""
end_all() { for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done; }
trap 'stopping=yes; end_all TERM' TERM INT
for ((i = 0; i < processes; i++)); do
  echo "+ JAX_PROCESS_ID=$i $(quoted "$python" -m realcustom_jax.train "$@")" >&2
  [ -z "$DRY_RUN" ] || continue
  if [ "$i" -eq 0 ]; then
    JAX_PROCESS_ID=0 "$python" -m realcustom_jax.train "$@" &
  else
    JAX_PROCESS_ID=$i "$python" -m realcustom_jax.train "$@" >"$workdir/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done

status=0
while :; do
  code=0
  wait -n || code=$?
  [ "$code" -ne 127 ] || break # no process is left
  # 143 after SIGTERM is not a failure: the forwarded signal also interrupts the wait itself.
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ] && ! { [ -n "$stopping" ] && [ "$code" -eq 143 ]; }; then
    status=$code
    echo "error: a process ended with status $code, the others are stopped; see $workdir/process_*.log" >&2
    end_all KILL
  fi
done
exit "$status"
