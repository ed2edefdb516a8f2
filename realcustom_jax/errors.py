"""The one kind of error that is the user's to fix, how a command reports it, and warnings."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
    """A user's mistake. Its text is one clear sentence that names the input at fault."""


def shown(value: Any) -> str:
    """A value in an error: on one line, and short, whatever it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def warn(sentence: str) -> None:
    """A Python warning that points at the caller's line outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, UserWarning, stacklevel=level)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into `error: …` on stderr and exit status 2; other errors keep their traceback.

    Warnings become one line too, `warning: …`, without the place in the code.

    Usable both as `with exit_on_user_error(): …` and as a decorator, `@exit_on_user_error()`, of a command's
    main function.

    Raises:
      SystemExit: with code 2, in place of the `UserError`.
    """
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, kind, *place, **rest: (
        f"warning: {message}\n" if kind is UserWarning else before(message, kind, *place, **rest)
    )
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        warnings.formatwarning = before
