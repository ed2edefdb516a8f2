"""Rules for option values: type, range and choices of a value, and the error for an invalid one."""

import dataclasses
import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np

from realcustom_jax.common.errors import UserError

LAST_STEP = 2**31 - 1  # steps are counted in int32
MAX_WORKERS = 4096  # limit for numbers of processes, threads and parts: more would only exhaust the machine


@dataclasses.dataclass(frozen=True)
class Rule:
    """Meaning, type and range of an option.

    Attributes:
      help: meaning of the option, as one phrase.
      kind: float, int, bool, tuple or str. A str must be one of `choices` if there are any.
      low, high: inclusive bounds of a number.
      choices: allowed values of a str.
      many: for float, whether a sequence with one number per request is allowed too; for int, whether the
        value is a sequence.
      none: meaning of None; if it is None, None is not allowed.
      above_0: why the number must not be 0; "" if 0 is allowed.
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
        """Help text with meaning, allowed values and defaults: "…: 0 to 1 (0.25)"."""
        allowed = ", ".join(self.choices)
        if self.low > -math.inf:
            bounded = self.high < LAST_STEP  # larger bounds are limits of number formats, not worth showing
            allowed = f"{self.low} to {self.high}" if bounded else f"{self.low} or more"
        return f"{self.help}{': ' if allowed else ''}{allowed} ({', '.join(map(str, defaults))})"

    def check(self, name: str, value: Any) -> Any:
        """Check a value, and convert it to plain Python types; sequences become tuples.

        Args:
          name: name of the option, for errors.
          value: the value.

        Raises:
          UserError: for a value that the rule does not allow.
        """
        # Plain types, because options are hashed, compared and stored as JSON.
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
        """Check a str."""
        if self.choices:
            if not isinstance(value, str) or value not in self.choices:
                raise UserError(f"{name} {shown(value)} is unknown; known: {', '.join(self.choices)}")
        elif not isinstance(value, str):
            raise UserError(f"{name} must be a text, not {shown(value)}")
        elif "\0" in value:  # no file name may contain it
            raise UserError(f"{name} holds a null character")
        return value

    def _floats(self, name: str, value: Any) -> float | tuple[float, ...]:
        """Check a float, or a sequence of floats."""
        expected = "one number or a list with one per request" if self.many else "a number"
        if is_list(value) and not self.many:
            raise UserError(f"{name} must be {expected}, not {shown(value)}")
        numbers: list[Any] = list(value) if is_list(value) else [value]
        for number in numbers:
            array = np.asarray(number)
            if array.ndim or array.dtype.kind not in "iuf":  # excludes text, None and bool
                raise UserError(f"{name} must be {expected}, not {shown(number)}")
            # In float32, because the value becomes a float32 array: 1e39 is finite in Python, but not there.
            with np.errstate(over="ignore"):
                if not np.isfinite(array.astype(np.float32)):
                    raise UserError(f"{name} must be finite in float32, not {number}")
            self._within(name, number)
        floats = tuple(map(float, numbers))
        return floats if is_list(value) else floats[0]

    def _within(self, name: str, value: Any) -> Any:
        """Check the range of a number."""
        if not self.low <= value <= self.high:
            one_sided = self.high >= LAST_STEP and value < self.low
            expected = f"{self.low} or more" if one_sided else f"from {self.low} to {self.high}"
            raise UserError(f"{name} must be {expected}, not {shown(value)}")
        if self.above_0 and value == 0:
            raise UserError(f"{name} must be above 0: {self.above_0}")
        return value


def _whole(name: str, value: Any) -> int:
    """An int from any integer type, including numpy's and JAX's, but not from bool, float or text."""
    # `operator.index` accepts exactly the integer types; bool is a subclass of int.
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name} must be a whole number, not {shown(value)}")


def is_list(value: Any) -> TypeGuard[Collection[Any]]:
    """Whether a value is a sequence of values: a list, tuple, range or array, but not text."""
    if isinstance(value, Sequence):
        return not isinstance(value, (str, bytes))
    return getattr(value, "ndim", 0) > 0


def shown(value: Any) -> str:
    """A value for an error message, on one line and at most 60 characters."""
    if isinstance(value, int) and abs(value) >= 10**30:  # `repr` raises for more than 4300 digits
        return "a huge number" if value > 0 else "a huge negative number"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def quoted(text: str) -> str:
    """A user's text in quotes for an error message, on one line and at most 80 characters."""
    text = " ".join(text.split())
    return f"'{text if len(text) <= 80 else text[:79] + '…'}'"


def option(default: Any, help: str, kind: type = float, resume: str = "", **rest: Any) -> Any:
    """A dataclass field with a `Rule`.

    Args:
      default: default value.
      help, kind: of the rule.
      resume: for fields of the training config, see `training.config.check_resume`.
      **rest: further attributes of the rule.
    """
    return dataclasses.field(default=default, metadata={"rule": Rule(help, kind, **rest), "resume": resume})


def choice(default: str, help: str, choices: Iterable[str], resume: str = "") -> Any:
    """A dataclass field like `option`, for one of several names."""
    return option(default, help, str, resume, choices=tuple(choices))


def rules_of(cls: type) -> dict[str, Rule]:
    """{field: its rule} for all dataclass fields made with `option`."""
    return {f.name: f.metadata["rule"] for f in dataclasses.fields(cls) if "rule" in f.metadata}
