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

tell() { # tell: the comment at the top of the script, then the end
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
  exit 0
}

# What parse_options finds: the value of each option, "yes" for one without, and what comes after --.
declare -A option=()
arguments=()

parse_options() { # parse_options "WITH VALUES" "WITHOUT" ARGUMENT…: into option and arguments
  local with=" $1 " without=" $2 dry-run " name
  shift 2
  while [ $# -gt 0 ]; do
    name=${1#--}
    case "$1" in
      --help | -h) tell ;;
      --) shift; arguments=("$@"); break ;;
    esac
    if [[ $1 == --* && $with == *" $name "* ]]; then
      [ $# -ge 2 ] || fail "$1 needs a value"
      option[$name]=$2
      shift 2
    elif [[ $1 == --* && $without == *" $name "* ]]; then
      option[$name]=yes
      shift
    else
      fail "unknown option $1; the arguments of the training come after --"
    fi
  done
  DRY_RUN=${option[dry-run]:-}
}

want() { # want OPTION…: all are given
  local name
  for name in "$@"; do
    [ -n "${option[$name]:-}" ] || fail "--$name is needed"
  done
}

want_arguments() {
  [ ${#arguments[@]} -gt 0 ] || fail "there are no arguments for the training after --"
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
