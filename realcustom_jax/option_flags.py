"""The sampling options as flags of a command: one for each, with what `SamplingOptions` says of it."""

import argparse
import math
from typing import Any

from realcustom_jax.options import SDXL, Rule, SamplingOptions


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add a group with all of them; those that are not given are None."""
    group = parser.add_argument_group(
        "sampling options", "Defaults are the model's own; in brackets SD1.5's, and SDXL's where it differs."
    )
    for name, rule in SamplingOptions.rules().items():
        group.add_argument(
            _flag(name),
            type=rule.kind,
            # A number each request is for the Python call; here all images share their options.
            nargs="+" if rule.many and rule.kind is int else None,
            metavar={int: "N", float: "NUMBER", str: "NAME"}[rule.kind],
            help=_help(name, rule),
        )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, each checked by itself; `sample` checks them together.

    Raises:
      UserError: for a value that an option can't have; the sentence names the flag.
    """
    given = {name: getattr(args, name) for name in SamplingOptions.rules()}
    given = {name: value for name, value in given.items() if value is not None}
    return {name: SamplingOptions.rules()[name].check(_flag(name), value) for name, value in given.items()}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str, rule: Rule) -> str:
    """Meaning, what it may be, and the defaults of both bases."""
    allowed = f"{rule.low} to {rule.high}" if rule.high < math.inf else ", ".join(rule.choices)
    defaults = [getattr(base, name) for base in (SamplingOptions(), SDXL)]
    shown = ", SDXL ".join(dict.fromkeys(rule.none if d is None else str(d) for d in defaults))
    return f"{rule.help}{': ' if allowed else ''}{allowed} ({shown})"
