"""Checks values from files against the types and ranges of a config dataclass."""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import shown

# Ranges of numbers, also within lists; the first regex that matches the field's name applies. Building the
# network checks that the values are consistent.
RANGES = (
    (r"beta_(start|end)$", 1e-9, 0.999),
    (r"num_train_timesteps$", 1, 10**5),
    (r"_eps$", 1e-12, 1),
    (r"(scaling_factor|image_std|logit_scale)$", 1e-12, 1e6),
    (r"feature_layers$", -1000, 1000),  # below 0: counted from the end
    (r"layers_per_block$", 1, 64),
    (r"layers", 1, 1000),
    (r"(vocab_size|eos_token_id|registers|steps_offset|freq_shift|image_mean)$", 0, 2**24),
    (r"", 1, 2**24),
)
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}


def check_fields(cls: type, values: Mapping[str, Any], source: str) -> None:
    """Check every value for which a config dataclass has a field; lists must be tuples already.

    Raises:
      UserError: if a value is impossible; the message names `source` and the field.
    """
    hints = _hints(cls)
    for name, value in values.items():
        if name not in hints:
            continue
        if not _fits(value, hints[name]):
            raise UserError(f"{source}: {name} must be {_type_name(hints[name])}, not {shown(value)}")
        least, most = next((low, high) for regex, low, high in RANGES if re.search(regex, name))
        for number in _numbers(value):
            if not least <= number <= most:
                raise UserError(f"{source}: {name} must be from {least:g} to {most:g}, not {shown(value)}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        part = typing.get_args(hint)[0]
        return isinstance(value, tuple) and bool(value) and all(_fits(one, part) for one in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    """A type in words."""
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_type_name, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_type_name(typing.get_args(hint)[0])}"
    return _NAMES[hint]


def _numbers(value: Any) -> list[int | float]:
    """The numbers in a value, at any depth."""
    if isinstance(value, tuple):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
