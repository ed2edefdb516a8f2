"""What all commands share: the compilation cache, config flags, one clear sentence for a user's mistake."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from realcustom_jax.errors import UserError, exit_on_user_error


def cache_dir() -> Path:
    """Where things that can be made again are kept: compiled programs, the drawn toybox.

    `$REALCUSTOM_JAX_CACHE`, else `~/.cache/realcustom_jax`.
    """
    return Path(os.environ.get("REALCUSTOM_JAX_CACHE") or Path.home() / ".cache" / "realcustom_jax")


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main: compiled programs are cached on disk, a user's mistake ends with status 2."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    with exit_on_user_error():
        main()


def parse_flags(help_text: str) -> None:
    """Parse absl and ml_collections flags from the command line.

    Raises:
      UserError: for an unknown flag or config key, or a value that can't be read.
      SystemExit: after printing the help, with status 0.
    """
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(sys.argv[1:]):
        print(help_text.strip())
        print(flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag("workdir") or "__main__"))
        raise SystemExit(0)
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from None
    except flags.Error as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]) from None
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"the config file {error.filename} cannot be read") from None
    except (AttributeError, KeyError):  # what ml_collections raises for a key that the config lacks
        _check_overrides()
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"the config or one of its values cannot be used: {error}") from None
    _check_loaded()
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; options begin with --, see --help")


def _unknown_flag(name: str) -> str:
    if not name.startswith("config."):
        return f"unknown option --{name}, see --help"
    *sections, _ = name.split(".")[1:]
    node = _given_config()
    for i, section in enumerate(sections):
        if node is None or section not in node:
            sections = sections[:i]
            break
        node = node[section]
    where = ".".join(["config", *sections])
    known = f"; {where} has: {', '.join(sorted(node.keys()))}" if hasattr(node, "keys") else ""
    return f"the config has no key '{name.removeprefix('config.')}'{known}"


def _given_config() -> Any:
    """The config as its file has it, also when a flag that changes it could not be read; None without one."""
    flag = flags.FLAGS["config"]
    for i, argument in enumerate(sys.argv):
        name, equals, path = argument.partition("=")
        if name in ("--config", "-config"):
            path = path if equals else "".join(sys.argv[i + 1 : i + 2])
            return flag.parser.parse(path)
    return flag.value


def _check_overrides() -> None:
    """Name the first --config.x.y that the config has no place for.

    Raises:
      UserError: with the keys that there are.
    """
    for argument in sys.argv[1:]:
        match = re.match(r"--?(?:no)?(config\.[^=]+)", argument)
        if not match:
            continue
        node = _given_config()
        for key in match[1].split(".")[1:]:
            if not hasattr(node, "keys") or key not in node:
                raise UserError(_unknown_flag(match[1])) from None
            node = node[key]


def _check_loaded() -> None:
    """ml_collections puts off the error of a config file that it cannot load until the config is used."""
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    try:
        if config is not None:
            config.keys()
    except OSError as error:
        raise UserError(f"the config file cannot be loaded: {str(error).splitlines()[-1].strip()}") from None
