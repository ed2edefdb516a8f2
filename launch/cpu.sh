#!/usr/bin/env bash
# Run a command on this machine's CPU, with memory allocation that suits XLA:
#   launch/cpu.sh python -m realcustom_jax.train --config configs/tiny.py --workdir runs/customize
# XLA allocates and frees memory with malloc in every step. By default glibc returns large blocks to the kernel at
# once, so every step has a page fault for each 4 KiB. These settings make glibc keep freed memory: in one heap for all
# threads, in huge pages if the kernel allows them. A process then never returns memory before it ends. Other C
# libraries ignore the settings.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

case "${1:-}" in
  --help | -h) show_help ;;
  -*) fail "unknown option $1; the first argument must be the command to run" ;;
  "") fail "there is no command to run" ;;
esac
require_command "$1" "it is the command to run"

tunables=(
  glibc.malloc.mmap_max=0 # take blocks of any size from the heap
  glibc.malloc.trim_threshold=$((1 << 40)) # never return free memory at the heap's end
  glibc.malloc.arena_max=1 # one heap: per-thread heaps are returned to the kernel
  glibc.malloc.hugetlb=1 # use huge pages, with madvise
)
joined=$(IFS=: && echo "${tunables[*]}")
export GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}$joined
exec "$@"
