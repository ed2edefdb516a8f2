#!/usr/bin/env bash
# Run a command on this machine's CPU with memory that is kept:
#   launch/cpu.sh python -m realcustom_jax.train --config configs/tiny.py --workdir runs/customize
# XLA takes the memory of every step from malloc and gives it back. On Linux that is a page fault for every 4 KiB of
# it, every time, as the C library returns large blocks to the kernel at once. These settings of glibc keep it, in
# one heap for all threads, in huge pages where the kernel gives them on request. So what a process once took stays
# its own to the end. Other C libraries pay them no heed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

case "${1:-}" in
  --help | -h) tell ;;
  -*) fail "unknown option $1; what comes first is the command to run" ;;
  "") fail "there is no command to run" ;;
esac
need "$1" "it is the command to run"

tunables=(
  glibc.malloc.mmap_max=0 # blocks of any size come from the heap
  glibc.malloc.trim_threshold=$((1 << 40)) # and what is free at its end stays
  glibc.malloc.arena_max=1 # the heaps of further threads would be small, and emptied
  glibc.malloc.hugetlb=1 # huge pages, by madvise
)
joined=$(IFS=: && echo "${tunables[*]}")
export GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}$joined
exec "$@"
