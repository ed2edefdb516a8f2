"""The sampling options in words, for `help` and for the commands: meaning, range and defaults."""

import math
import textwrap
from collections.abc import Callable
from typing import Any

from realcustom_jax.options import SDXL, SamplingOptions


def describe(name: str) -> str:
    """An option's meaning, what it may be, and the defaults of both bases: "… : 0 to 1 (0.25)"."""
    rule = SamplingOptions.rules()[name]
    allowed = ", ".join(rule.choices)
    if rule.low > -math.inf:
        allowed = f"{rule.low} to {rule.high}" if rule.high < math.inf else f"{rule.low} or more"
    defaults = [getattr(base, name) for base in (SamplingOptions(), SDXL)]
    shown = ", SDXL ".join(dict.fromkeys(rule.none if d is None else str(d) for d in defaults))
    return f"{rule.help}{': ' if allowed else ''}{allowed} ({shown})"


def documented(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with `{options}` in its docstring filled in."""
    lines = (
        textwrap.fill(f"{name}: {describe(name)}", 108, initial_indent=" " * 8, subsequent_indent=" " * 10)
        for name in SamplingOptions.rules()
    )
    if function.__doc__:  # none with python -OO
        function.__doc__ = function.__doc__.replace("{options}", "\n".join(lines).lstrip())
    return function
