"""A profile of some steps of a run, for TensorBoard's or XProf's trace viewer."""

from pathlib import Path
from typing import Any

import jax

from realcustom_jax.common.errors import UserError


def parse_window(text: str) -> tuple[int, int]:
    """ "10:15" → the first and the last step.

    Raises:
      UserError: for anything else.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise UserError(f"--profile {text!r} is not FIRST:LAST, two steps such as 10:15")
    return int(first), int(last)


class Profile:
    """Records the steps of a window, if there is one, into a folder."""

    def __init__(self, window: tuple[int, int] | None, folder: Path):
        self._window, self._folder, self._running = window, folder, False

    def before(self, step: int) -> None:
        if self._window and step == self._window[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """To be called with what the step gave, so that the last one is recorded to its end."""
        if self._running and step >= self._window[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
