# Sourced by tpu_vm.sh and tpu_pod.sh: options, and copying, installing and training on all hosts of a TPU.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the scripts that source this file use the variables

common=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$common/common.sh"

parse_tpu_options() { # parse_tpu_options OPTION… -- ARGUMENT…: check the options and set the variables of both scripts
  parse_options "name zone type version bucket project" "spot delete" "$@"
  require name zone
  name=${option[name]} type=${option[type]:-} bucket=${option[bucket]:-} bucket=${bucket#gs://}
  where=(--zone "${option[zone]}")
  [ -z "${option[project]:-}" ] || where=(--project "${option[project]}" "${where[@]}")
  spot=()
  [ -z "${option[spot]:-}" ] || spot=(--spot)
  delete=${option[delete]:-}
  require_command gcloud "the Google Cloud CLI creates TPUs and connects to them"
  require_command git "git archive makes the copy of this checkout"
  [ -z "$delete" ] || return 0
  require type
  require_arguments
  version=${option[version]:-}
  if [ -z "$version" ]; then
    case "$type" in # each chip has its own runtime
      v6e-*) version=v2-alpha-tpuv6e ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      *) version=tpu-ubuntu2204-base ;;
    esac
  fi
}

exists() { # exists COMMAND…: whether a `describe` command finds its resource; false in a dry run
  [ -z "$DRY_RUN" ] && "$@" >/dev/null 2>&1
}

on_workers() { # on_workers COMMAND: run one line of shell on every host
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}

# rename-dir-limit: a checkpoint is finished by renaming its folder, which gcsfuse allows only up to a number of files.
install_on_workers() { # install the committed state of this checkout in ~/realcustom_jax and ~/venv
  local archive root
  root=$(git -C "$common" rev-parse --show-toplevel)
  [ -z "$(git -C "$root" status --porcelain)" ] || echo "# uncommitted changes are not copied" >&2
  archive=${TMPDIR:-/tmp}/realcustom_jax.tar.gz
  run git -C "$root" archive --prefix=realcustom_jax/ --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" --worker=all
  on_workers "rm -rf realcustom_jax && tar xzf realcustom_jax.tar.gz \
&& { [ -x venv/bin/python ] || python3.11 -m venv venv \
|| { sudo apt-get update -q && sudo apt-get install -qy python3.11-venv && python3.11 -m venv venv; }; } \
&& venv/bin/pip install -q -e './realcustom_jax[tpu]'"
  if [ -n "$bucket" ]; then
    on_workers "mkdir -p bucket && { mountpoint -q bucket || { command -v gcsfuse >/dev/null \
|| { echo error: gcsfuse is not installed on the hosts: choose an image that has it; exit 2; }; \
gcsfuse --implicit-dirs --rename-dir-limit=200000 $(quoted "$bucket") bucket; }; }"
  fi
}

train_on_workers() { # train_on_workers FLAG: train, with at most 20 restarts after failures; FLAG may be empty
  local command=(venv/bin/python -m realcustom_jax.train)
  [ -z "$1" ] || command+=("$1")
  # Paths of configs are relative to the checkout, those of workdirs to the home folder. Status 2 is a mistake in the
  # command, which a restart cannot fix.
  on_workers "ln -sfn realcustom_jax/configs configs; for i in \$(seq 20); do \
$(quoted "${command[@]}" "${arguments[@]}") && exit 0; \
[ \$? -ne 2 ] || exit 2; echo restarting after failure \$i; sleep 15; done; exit 1"
}
