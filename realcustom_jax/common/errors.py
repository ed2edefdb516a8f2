"""`UserError`, for mistakes that the user can fix; its report by commands; and warnings."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

_PACKAGE = __name__.partition(".")[0]


class UserError(ValueError):
    """A mistake that the user can fix. The message is one sentence that names the wrong input."""

    def __init__(self, message: str):
        # It may quote text that no encoding has, such as half of a surrogate pair in a JSON file.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())


def warn(sentence: str) -> None:
    """Issue a Python warning that points at the caller's line outside this package."""
    # Python shows a warning once per line; with our own line, later callers would not see it.
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, UserWarning, stacklevel=level)


def one_line(error: BaseException) -> str:
    """The reason of an error in one line of at most 200 characters; its class where it has no message."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into `error: …` on stderr and exit status 2; other errors keep their traceback.

    Warnings are also one line, `warning: …`, without the position in the code. It works as a context manager,
    `with exit_on_user_error(): …`, and as a decorator of a main function, `@exit_on_user_error()`.

    Raises:
      SystemExit: with code 2, instead of the `UserError`.
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
