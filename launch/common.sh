# Sourced by the other scripts: errors, options, and printing of commands.
# shellcheck shell=bash

DRY_RUN=""

fail() { # fail MESSAGE: print an error and exit with status 2
  echo "error: $1" >&2
  exit 2
}

require_command() { # require_command COMMAND WHY: fail if the command is not installed
  if command -v "$1" >/dev/null; then
    return
  elif [ -n "$DRY_RUN" ]; then
    echo "# $1 is not installed here: $2" >&2
  else
    fail "$1 is not installed: $2"
  fi
}

show_help() { # show_help: print the comment at the top of the script, and exit
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
  exit 0
}

# Results of parse_options: the value of each option ("yes" for flags), and the arguments after --.
declare -A option=()
arguments=()

parse_options() { # parse_options "OPTIONS WITH VALUES" "FLAGS" ARGUMENT…: fill `option` and `arguments`
  local with=" $1 " without=" $2 dry-run " name
  shift 2
  while [ $# -gt 0 ]; do
    name=${1#--}
    case "$1" in
      --help | -h) show_help ;;
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

require() { # require OPTION…: fail if an option is missing
  local name
  for name in "$@"; do
    [ -n "${option[$name]:-}" ] || fail "--$name is needed"
  done
}

require_arguments() { # require_arguments: fail if there is nothing after --
  [ ${#arguments[@]} -gt 0 ] || fail "there are no arguments for the training after --"
}

run() { # run COMMAND…: print the command, and run it unless this is a dry run
  echo "+ $(quoted "$@")" >&2
  [ -n "$DRY_RUN" ] || "$@"
}

quoted() { # quoted WORD…: one line that a shell splits into these words again
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}
