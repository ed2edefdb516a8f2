"""The one kind of error that is the user's to fix, and how a command reports it."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A user's mistake. Its text is one clear sentence that names the input at fault."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into `error: …` on stderr and exit status 2; other errors keep their traceback.

    Usable both as `with exit_on_user_error(): …` and as a decorator, `@exit_on_user_error()`, of a command's
    main function.

    Raises:
      SystemExit: with code 2, in place of the `UserError`.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
