"""What a value from outside may be: its type, range or choices, and the error where it is not."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an option means and may be.

    Attributes:
      help: one phrase.
      kind: float, int, or str for one of `choices`.
      low, high: of a number; the bounds are allowed.
      choices: of a str.
      many: a number for all requests or a sequence of one each (float), or a sequence (int).
      none: what None stands for; without it None is not allowed.
    """

    help: str
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    many: bool = False
    none: str | None = None

    def check(self, name: str, value: Any) -> Any:
        """The value in plain Python types, sequences as tuples.

        Raises:
          UserError: when it is none of what the option may be.
        """
        if value is None and self.none:
            return None
        if self.kind is str:
            if not isinstance(value, str) or value not in self.choices:
                raise UserError(f"{name} {shown(value)} is unknown; known: {', '.join(self.choices)}")
            return value
        if self.kind is float:
            return self._floats(name, value)
        if not self.many:
            return self._within(name, _whole(name, value))
        if not is_list(value) or len(value) == 0:
            raise UserError(f"{name} must be a list of one or more whole numbers, not {shown(value)}")
        return tuple(self._within(name, _whole(name, one)) for one in value)

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
            wanted = f"from {self.low} to {self.high}" if self.high < math.inf else f"{self.low} or more"
            raise UserError(f"{name} must be {wanted}, not {value}")
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
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"
