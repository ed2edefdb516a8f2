# Read by the other scripts: how they say what they do, and check what they need.
# shellcheck shell=bash

DRY_RUN=""

fail() { # fail MESSAGE: one sentence, exit status 2
  echo "error: $1" >&2
  exit 2
}

need() { # need COMMAND WHY: the command is there, or the script ends
  if command -v "$1" >/dev/null; then
    return
  elif [ -n "$DRY_RUN" ]; then
    echo "# $1 is not installed here: $2" >&2
  else
    fail "$1 is not installed: $2"
  fi
}

value() { # value OPTION ARGUMENTS…: the option has a value
  [ $# -ge 2 ] || fail "$1 needs a value"
}

run() { # run COMMAND…: print it, and run it unless this is a dry run
  echo "+ $(quoted "$@")" >&2
  [ -n "$DRY_RUN" ] || "$@"
}

quoted() { # quoted WORD…: as one line that a shell reads as these words
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}
