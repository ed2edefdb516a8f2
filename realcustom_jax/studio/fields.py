"""Reads the page's fields: numbers, boxes, sampling options and uploads."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import shown
from realcustom_jax.inputs.requests import SEED
from realcustom_jax.inputs.subjects import Box
from realcustom_jax.options import SamplingOptions


def seed_of(text: Any) -> int:
    """A seed that was typed; empty is 0.

    Raises:
      UserError: for another text than a whole number in range.
    """
    # Text instead of a number: browsers round whole numbers from 2**53 on.
    text = str(text if text is not None else "").strip()
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?\d{1,40}", text):
        raise UserError(f"the seed must be a whole number, not {shown(text)}")
    return SEED.check("the seed", int(text))


def box_of(text: str | None) -> Box | None:
    """A face box that was typed, "left, top, right, bottom" in pixels; empty is none.

    Raises:
      UserError: for another text than four numbers.
    """
    parts = [part for part in re.split(r"[\s,;]+", text or "") if part]
    if not parts:
        return None
    try:
        left, top, right, bottom = map(float, parts)
    except ValueError:
        raise UserError(
            f"a face box must be four numbers, left, top, right, bottom, not {shown(text)}"
        ) from None
    return left, top, right, bottom


def text_of_box(box: Any) -> str:
    """Inverse of `box_of`."""
    return "" if box is None else ", ".join(f"{side:g}" for side in box)


def changed_options(values: Mapping[str, Any], defaults: SamplingOptions) -> dict[str, Any]:
    """The sampling options whose fields differ from the model's defaults.

    Args:
      values: {option: value of its field}.
      defaults: the model's defaults.

    Raises:
      UserError: for a value that the option does not allow.
    """
    checked = {name: _option_of(name, value) for name, value in values.items()}
    return {
        name: value
        for name, value in checked.items()
        if value != getattr(defaults, name) and not (value is None and not SamplingOptions.rules()[name].none)
    }


def field_of(name: str, defaults: SamplingOptions) -> Any:
    """The value that a field shows for the default of an option."""
    value = getattr(defaults, name)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


@contextlib.contextmanager
def uploads_named(*paths: str) -> Iterator[None]:
    """Errors inside name uploaded files without the folder where they lie on this machine."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for path in paths:
            text = text.replace(f"{Path(path).parent}/", "")
        raise UserError(text) from None


def _option_of(name: str, value: Any) -> Any:
    """The value of an option's field, checked; None for an empty field."""
    rule = SamplingOptions.rules()[name]
    if value is None or value == "":
        return None
    if rule.kind is int and isinstance(value, str):
        numbers = [part for part in re.split(r"[\s,;]+", value) if part]
        if not all(re.fullmatch(r"\d{1,9}", number) for number in numbers):
            raise UserError(f"{name} must be whole numbers, not {shown(value)}")
        if not rule.many and len(numbers) != 1:
            raise UserError(f"{name} must be one whole number, not {shown(value)}")
        value = tuple(map(int, numbers)) if rule.many else int(numbers[0])
    if rule.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return rule.check(name, value)
