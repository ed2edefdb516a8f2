#!/usr/bin/env bash
# Collect what a GPU machine without network lacks to train the toybox:
#   launch/gpu_bundle.sh --installed installed.txt --out bundle [--python 3.12] [--minutes 8] [--dry-run]
# installed.txt is what `python3 -m pip list --format=freeze` prints there; JAX must be in it. Downloads the missing
# packages as wheels for Linux on x86-64 into the folder, in the versions of this project's lock file, and prints the
# commands for that machine. Copy the folder there together with the checkout.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

parse_options "installed out python minutes" "" "$@"
require installed out
[ -f "${option[installed]}" ] || fail "${option[installed]} does not exist: it is the output of pip list there"
out=${option[out]} version=${option[python]:-3.12} minutes=${option[minutes]:-8}
[[ $version =~ ^3\.[0-9]+$ ]] || fail "--python must be like 3.12, not $version"
[[ $minutes =~ ^[1-9][0-9]*$ ]] || fail "--minutes must be a whole number of at least 1, not $minutes"
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=$here/../.venv/bin/python
  [ -x "$python" ] || python=python3
fi
lock=$here/../requirements-py312.lock
[ "$version" = 3.11 ] && lock=$here/../requirements.lock

missing=$("$python" "$here/missing_packages.py" "$lock" "${option[installed]}" "$version") || exit 2
echo "missing there: $(echo "$missing" | tr '\n' ' ')" >&2
tags=()
for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do tags+=(--platform "manylinux_${glibc}_x86_64"); done
tags+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
wheels=(--quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${tags[@]}" --dest "$out")
mistakes=$(mktemp)
trap 'rm -f "$mistakes"' EXIT
for package in $missing; do
  if [ -n "$DRY_RUN" ]; then
    echo "+ $(quoted "$python" -m pip download "${wheels[@]}" "$package")" >&2
  elif ! "$python" -m pip download "${wheels[@]}" "$package" 2>"$mistakes"; then
    # A package without wheels: one of pure Python makes a wheel for every machine.
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$out" "$package" || { cat "$mistakes" >&2; exit 2; }
  fi
done
if [ -z "$DRY_RUN" ]; then
  if compgen -G "$out/*-linux_*.whl" >/dev/null; then fail "$(echo "$out"/*-linux_*.whl) fits this machine only"; fi
  du -sh "$out" | sed 's/^/size: /' >&2
fi

cat <<EOF
# On that machine, in the checkout; the last command again until it prints where the model is:
python3 -m pip install --no-index --no-deps --target site $out/*.whl
export PYTHONPATH=site:.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
python3 -m realcustom_jax.toybox.train --size large --out runs/large --minutes $minutes
EOF
