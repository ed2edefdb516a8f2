"""What a value from outside may be: its type, range or choices, and the error where it is not."""

import dataclasses
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from realcustom_jax.common.errors import UserError

LAST_STEP = 2**31 - 1  # steps are counted in int32
MOST_PARTS = 4096  # processes, threads, parts: more would only exhaust the machine


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an option means and may be.

    Attributes:
      help: one phrase.
      kind: float, int, bool, tuple, or str: one of `choices`, or any text where there are none.
      low, high: of a number; the bounds are allowed.
      choices: of a str.
      many: a number for all requests or a sequence of one each (float), or a sequence (int).
      none: what None stands for; without it None is not allowed.
      above_0: why a number must not be 0, where it must not.
    """

    help: str
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    many: bool = False
    none: str | None = None
    above_0: str = ""

    def describe(self, *defaults: Any) -> str:
        """Its meaning, what it may be, and its defaults: "… : 0 to 1 (0.25)"."""
        allowed = ", ".join(self.choices)
        if self.low > -math.inf:
            bounded = self.high < LAST_STEP  # beyond it, the bound is one of memory or of number formats
            allowed = f"{self.low} to {self.high}" if bounded else f"{self.low} or more"
        return f"{self.help}{': ' if allowed else ''}{allowed} ({', '.join(map(str, defaults))})"

    def check(self, name: str, value: Any) -> Any:
        """The value in plain Python types, sequences as tuples.

        Raises:
          UserError: when it is none of what the option may be.
        """
        if value is None and self.none:
            return None
        if self.kind is bool:
            if not isinstance(value, (bool, np.bool_)):
                raise UserError(f"{name} must be True or False, not {shown(value)}")
            return bool(value)
        if self.kind is tuple:
            if not isinstance(value, (list, tuple)):
                raise UserError(f"{name} must be a list, not {shown(value)}")
            return tuple(value)
        if self.kind is str:
            return self._text(name, value)
        if self.kind is float:
            return self._floats(name, value)
        if not self.many:
            return self._within(name, _whole(name, value))
        if not is_list(value) or len(value) == 0:
            raise UserError(f"{name} must be a list of one or more whole numbers, not {shown(value)}")
        return tuple(self._within(name, _whole(name, one)) for one in value)

    def _text(self, name: str, value: Any) -> str:
        if self.choices:
            if not isinstance(value, str) or value not in self.choices:
                raise UserError(f"{name} {shown(value)} is unknown; known: {', '.join(self.choices)}")
        elif not isinstance(value, str):
            raise UserError(f"{name} must be a text, not {shown(value)}")
        elif "\0" in value:
            raise UserError(f"{name} holds a null character")
        return value

    def _floats(self, name: str, value: Any) -> float | tuple[float, ...]:
        wanted = "one number or a list of one each request" if self.many else "a number"
        if is_list(value) and not self.many:
            raise UserError(f"{name} must be {wanted}, not {shown(value)}")
        numbers = list(value) if is_list(value) else [value]
        for number in numbers:
            array = np.asarray(number)
            if array.ndim or array.dtype.kind not in "iuf":  # neither text, None nor a bool
                raise UserError(f"{name} must be {wanted}, not {shown(number)}")
            with np.errstate(over="ignore"):
                if not np.isfinite(array.astype(np.float32)):
                    raise UserError(f"{name} must be finite in float32, not {number}")
            self._within(name, number)
        return tuple(map(float, numbers)) if is_list(value) else float(value)

    def _within(self, name: str, value: Any) -> Any:
        if not self.low <= value <= self.high:
            one_sided = self.high >= LAST_STEP and value < self.low
            wanted = f"{self.low} or more" if one_sided else f"from {self.low} to {self.high}"
            raise UserError(f"{name} must be {wanted}, not {shown(value)}")
        if self.above_0 and value == 0:
            raise UserError(f"{name} must be above 0: {self.above_0}")
        return value


def _whole(name: str, value: Any) -> int:
    """An int from any integer type, numpy's and JAX's too, but neither from a bool, a float nor text."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name} must be a whole number, not {shown(value)}")


def is_list(value: Any) -> bool:
    """Whether it holds values one by one: a list, tuple, range or array, but not text."""
    if isinstance(value, Sequence):
        return not isinstance(value, (str, bytes))
    return getattr(value, "ndim", 0) > 0


def shown(value: Any) -> str:
    """A value in an error: on one line, and short, whatever it is."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python does not print numbers of 5000 digits
        return "a huge number" if value > 0 else "a huge negative number"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def option(default: Any, help: str, kind: type = float, resume: str = "", **rest: Any) -> Any:
    """A dataclass field with its `Rule`, whose further attributes are `rest`.

    Args:
      default: its value where none is given.
      help: one phrase.
      kind: as the rule's.
      resume: of a training's config, see `training.config.check_resume`.
    """
    return dataclasses.field(default=default, metadata={"rule": Rule(help, kind, **rest), "resume": resume})


def choice(default: str, help: str, choices: Iterable[str], resume: str = "") -> Any:
    """As `option`, one of some names."""
    return option(default, help, str, resume, choices=tuple(choices))


def rules_of(cls: type) -> dict[str, Rule]:
    """{field: its rule}, of the dataclass fields that `option` made."""
    return {f.name: f.metadata["rule"] for f in dataclasses.fields(cls) if "rule" in f.metadata}
