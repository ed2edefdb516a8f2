"""Progress of long work on stderr: one line that is redrawn on a terminal, else plain lines.

Work that ends within two seconds prints nothing.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import shown

_Item = TypeVar("_Item")

# (stage, done, total): called when a stage starts, with 0 and None, and after each of its steps.
ProgressFunction = Callable[[str, int, int | None], Any]

# Seconds before the first output of a stage, between two plain lines, and between two redraws.
_PATIENCE = 2.0
_BETWEEN_LINES = 10.0
_BETWEEN_REDRAWS = 0.2


class Progress:
    """Reports stages of work and their steps, in a `with` block.

    `stage` begins a stage, `step` counts within it. Both take microseconds and can be called from any thread.
    Calls after the end of the block show nothing.
    """

    each_step = False  # whether work must stop after every step to report it

    def __init__(self, shown: bool = True, patience: float = _PATIENCE, stream: TextIO | None = None):
        """Begin the work.

        Args:
          shown: whether to show anything.
          patience: seconds before the first output.
          stream: where to write; None for stderr.
        """
        self.shown = shown
        self._patience = patience
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._drawn = self._over = False
        # Counts stages and lines. A timer that fires late compares it, and does not write an old stage's
        # name.
        self._turn = 0
        self._begun = self._last = time.monotonic()  # of the stage, and of the last line
        self._before = 0  # steps that were done before the stage began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stop_timer()
            self._over = True
            self._clear()

    def stage(self, text: str, done: int = 0) -> None:
        """Begin a stage. Its name is shown if nothing else is within the patience.

        Args:
          text: name of the stage.
          done: number of its steps that are already done.
        """
        if not self.shown:
            return
        with self._lock:
            if self._over:
                return
            self._stop_timer()
            self._begun, self._before = time.monotonic(), done
            # the first line is due after the patience instead of after `_BETWEEN_LINES`
            self._last = self._begun + self._patience - _BETWEEN_LINES
            self._timer = threading.Timer(self._patience, self._write_stage, [text, self._turn])
            self._timer.daemon = True  # it must not keep the process alive
            self._timer.start()

    def step(self, done: int, total: int | None, what: str, unit: str) -> None:
        """Report steps: "sampling: step 3 of 25, 2.1 s a step, 46 s left".

        Args:
          done, total: number of finished steps, and of all steps if known.
          what: name of the stage.
          unit: name of a step.
        """
        with self._lock:
            if not self._due():
                return
            seconds = (self._last - self._begun) / max(done - self._before, 1)
            of = f" of {total}" if total else ""
            self._write(f"{what}: {unit} {done}{of}, {pace(seconds, unit)}{_left(seconds, done, total)}")

    def amount(self, done: int, total: int | None, what: str) -> None:
        """Report bytes: "reading the model: 3.1 of 8.7 GiB, 12 s left". Arguments as in `step`, in bytes."""
        with self._lock:
            if not self._due():
                return
            seconds = (self._last - self._begun) / max(done - self._before, 1)
            of = f" of {total / 2**30:.1f}" if total else ""
            self._write(f"{what}: {done / 2**30:.1f}{of} GiB{_left(seconds, done, total)}")

    def _due(self) -> bool:
        """Whether a line is due now; if so, it becomes the last line. The caller holds the lock."""
        now = time.monotonic()
        between = _BETWEEN_REDRAWS if self._terminal else _BETWEEN_LINES
        quick = now - self._begun < self._patience or now - self._last < between
        if self._over or quick or not self.shown:
            return False
        self._stop_timer()
        self._last = now
        return True

    def _stop_timer(self) -> None:
        """Cancel the timer. A timer that has already fired and waits for the lock sees the new turn."""
        self._turn += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _write_stage(self, text: str, turn: int) -> None:
        """Called by the timer: the stage takes longer than the patience."""
        with self._lock:
            if turn == self._turn:
                self._write(text)

    def _write(self, text: str) -> None:
        self._clear()
        self._stream.write(text if self._terminal else f"{text}\n")
        self._stream.flush()
        self._drawn = self._terminal

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[2K")  # to the start of the line, then erase the line
            self._stream.flush()
            self._drawn = False


class FunctionProgress:
    """Reports stages and every step to a function, with the same calls as `Progress`.

    What the function raises ends the work that reports.
    """

    shown = each_step = True

    def __init__(self, function: ProgressFunction):
        self._function = function

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stage(self, text: str, done: int = 0) -> None:
        """Begin a stage; `done` is ignored."""
        self._function(text, 0, None)

    def step(self, done: int, total: int | None, what: str, unit: str) -> None:
        """Report a finished step of the stage `what`; `unit` is ignored."""
        self._function(what, done, total)


class Counter:
    """A counter that reports progress: "sampling: image 3 of 40, 2.1 s an image"."""

    def __init__(self, total: int | None, what: str, unit: str, stream: TextIO | None = None):
        self._progress = Progress(stream=stream)
        self._total, self._what, self._unit = total, what, unit
        self._done, self._note = 0, ""

    def __enter__(self) -> Self:
        self._progress.stage(self._what)
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(None, None, None)

    def note(self, text: str) -> None:
        """Set a note, which is shown in brackets after the name of the stage."""
        self._note = f" ({text})"

    def update(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self._done += count
        self._progress.step(self._done, self._total, self._what + self._note, self._unit)


def counted(items: Iterable[_Item], total: int, what: str, unit: str) -> Iterator[_Item]:
    """Iterate over items, and report each as done when the next one is requested."""
    with Counter(total, what, unit) as counter:
        for item in items:
            yield item
            counter.update()


def _left(seconds: float, done: int, total: int | None) -> str:
    """The time left, ", 46 s left", if each step takes `seconds`; "" if the total is unknown."""
    return f", {duration(seconds * (total - done))} left" if total and done < total else ""


def pace(seconds: float, unit: str) -> str:
    """Seconds per unit ("2.1 s a step"), or units per second if a unit takes less than a second."""
    if seconds >= 1:
        return f"{seconds:.3g} s {'an' if unit[0] in 'aeiou' else 'a'} {unit}"
    return f"{1 / max(seconds, 1e-9):.3g} {unit}s a second"


def duration(seconds: float) -> str:
    """A rounded duration: "46 s", "3 min", "2.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_of(progress: Any) -> Progress | FunctionProgress:
    """The reporter of an option `progress` that may also be a `ProgressFunction`.

    Raises:
      UserError: for a value other than True, False, None or a function.
    """
    if callable(progress):
        return FunctionProgress(progress)
    return Progress(check_progress(progress, "True, False, None or a function"))


def check_progress(progress: Any, allowed: str = "True, False or None") -> bool:
    """The option `progress` as a bool; None is True.

    Raises:
      UserError: for a value other than True, False or None; the message names what is `allowed`.
    """
    if progress is not None and not isinstance(progress, bool):
        raise UserError(f"progress must be {allowed}, not {shown(progress)}")
    return progress is None or progress
