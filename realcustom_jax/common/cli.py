"""Shared parts of all commands: compilation cache, config flags, and one-line errors for user mistakes."""

import argparse
import importlib.util
import logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict

from realcustom_jax.common.compile_cache import use_compilation_cache
from realcustom_jax.common.errors import UserError, exit_on_user_error
from realcustom_jax.common.foreign_names import our_name


def tpu_is_absent(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Whether the TPU library is installed (for `aot`), but the machine has no TPU.

    False if the user set the platforms, or if JAX has a GPU plugin and must choose itself.
    """
    # JAX's own search for a TPU then prints errors and takes seconds.
    if environment.get("JAX_PLATFORMS") or not importlib.util.find_spec("libtpu"):
        return False
    # device files of the TPU drivers
    has_tpu = any(devices.glob("accel*")) or any(devices.glob("vfio/*"))
    has_gpu = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return not (has_tpu or has_gpu)


def run_command(main: Callable[[], None]) -> None:
    """Run the main function of a command, with the compilation cache; a `UserError` exits with status 2."""
    if tpu_is_absent():
        jax.config.update("jax_platforms", "cpu")
    use_compilation_cache()
    # Orbax raises the errors of its asyncio tasks, and asyncio would log them a second time.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with exit_on_user_error():
        main()


class CommandParser(argparse.ArgumentParser):
    """Argument parser for all commands except the training ones; errors are one sentence.

    Args:
      command: name of the command, after "python -m realcustom_jax.".
      story: help text; its line breaks are kept. A docstring is None with python -OO.
      usage: usage line; None for argparse's own.
    """

    # Abbreviations are off: a new flag could change what an abbreviation means.
    def __init__(self, command: str, story: str | None, usage: str | None = None):
        super().__init__(
            prog=f"python -m realcustom_jax.{command}",
            description=story,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage=usage,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a one-sentence error instead of printing argparse's usage text.

        Raises:
          UserError: always.
        """
        # An unknown flag may be the name of ours in another program, such as --num-inference-steps.
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].partition("=")[0]
        ours = our_name(unknown) if unknown.startswith("--") else None
        raise UserError(f"{ours or message}, see --help")


def parse_flags(help_text: str | None) -> None:
    """Parse absl and ml_collections flags from the command line.

    Args:
      help_text: text of --help before the list of flags.

    Raises:
      UserError: for an unknown flag or config key, or an invalid value or config file.
      SystemExit: after printing the help, with status 0.
    """
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(sys.argv[1:]):
        print((help_text or "").strip())  # none with python -OO
        print(flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag("workdir") or "__main__"))
        raise SystemExit(0)
    given = _config_file()
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname, given)) from None
    except flags.Error as error:
        # absl's message has several lines: the first names the flag, the last says why.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]) from None
    except (AttributeError, KeyError):  # raised by ml_collections for a key that the config does not have
        _check_overrides(given)
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"the config or one of its values cannot be used: {error}") from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; options begin with --, see --help")


def _config_file() -> ConfigDict | None:
    """The config of the --config file, before flags change it; None without --config.

    Raises:
      UserError: if the file is missing, fails, or does not return a config.
    """
    # ml_collections loads the file again later, but its errors for a broken file are unclear or missing.
    argument = _config_argument()
    if argument is None:
        return None
    path, *stage = argument.split(":", 1)  # FILE:STAGE
    try:
        get_config = runpy.run_path(path).get("get_config")
        config = get_config(*stage) if get_config else None
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"the config file {path} has an error in line {error.lineno}: {error.msg}") from None
    except Exception as error:  # user code can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
        ]
        where = f"fails in line {lines[-1]}" if lines else "cannot be used"
        raise UserError(f"the config file {path} {where}: {reason}") from None
    if get_config is None:
        raise UserError(f"the config file {path} has no function get_config")
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} must return a ConfigDict, not {type(config).__name__}")
    return config


def _config_argument() -> str | None:
    """The value of --config on the command line, as --config=VALUE or --config VALUE."""
    for i, argument in enumerate(sys.argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else next(iter(sys.argv[i + 1 :]), None)
    return None


def _unknown_flag(name: str, config: ConfigDict | None) -> str:
    """Message for an unknown flag or config key; for a key, with the known keys of its section."""
    if not name.startswith("config."):
        return f"unknown option --{name}, see --help"
    *sections, _ = name.split(".")[1:]
    # Descend to the last section that exists.
    node: Any = config
    for i, section in enumerate(sections):
        if node is None or section not in node:
            sections = sections[:i]
            break
        node = node[section]
    where = ".".join(["config", *sections])
    keys = sorted(node.keys()) if node is not None and hasattr(node, "keys") else None
    known = "" if keys is None else f"; {where} has: {', '.join(keys)}"
    return f"the config has no key '{name.removeprefix('config.')}'{known}"


def _check_overrides(config: ConfigDict | None) -> None:
    """Check that the config has the key of each --config.x.y flag.

    Raises:
      UserError: for the first unknown key, with the known keys.
    """
    for argument in sys.argv[1:]:
        match = re.match(r"--?(?:no)?(config\.[^=]+)", argument)  # --noconfig.x sets a bool to False
        if not match:
            continue
        node: Any = config
        for key in match[1].split(".")[1:]:
            if not hasattr(node, "keys") or key not in node:
                raise UserError(_unknown_flag(match[1], config)) from None
            node = node[key]
