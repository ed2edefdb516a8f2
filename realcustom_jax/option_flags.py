"""The sampling options as flags of a command: one for each, with what `SamplingOptions` says of it."""

import argparse
from typing import Any

from realcustom_jax.option_help import describe
from realcustom_jax.options import SamplingOptions


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
            help=describe(name),
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
