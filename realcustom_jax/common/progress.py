"""What a long piece of work is doing, on stderr: one line that is redrawn on a terminal, else plain lines.

Work that ends within two seconds prints nothing.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import shown

_Item = TypeVar("_Item")

# Seconds of silence before a stage is named, and between two plain lines of its steps.
_PATIENCE = 2.0
_BETWEEN_LINES = 10.0
_BETWEEN_REDRAWS = 0.2


class Progress:
    """Stages of a piece of work and the steps within one, in a `with` block.

    `stage` names what begins now; `step` counts within it. Both cost microseconds, and may be called from any
    thread: what comes after the end of the block is not shown.
    """

    def __init__(self, shown: bool = True, patience: float = _PATIENCE, stream: TextIO | None = None):
        """Begin; `patience` is how many seconds pass before anything is shown."""
        self.shown = shown
        self._patience = patience
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._drawn = self._over = False
        self._turn = 0  # the newest stage or line: the name of an older stage comes too late
        self._begun = self._last = time.monotonic()
        self._before = 0  # steps done when the stage began

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
        """Something else begins, of whose steps some may be done; its name is shown when it takes long."""
        if not self.shown:
            return
        with self._lock:
            if self._over:
                return
            self._stop_timer()
            self._begun, self._before = time.monotonic(), done
            # The first line comes after the patience.
            self._last = self._begun + self._patience - _BETWEEN_LINES
            self._timer = threading.Timer(self._patience, self._name, [text, self._turn])
            self._timer.daemon = True
            self._timer.start()

    def step(self, done: int, total: int | None, what: str, unit: str) -> None:
        """So many of a stage are done: "sampling: step 3 of 25, 2.1 s a step, 46 s left"."""
        with self._lock:
            if not self._due():
                return
            seconds = (self._last - self._begun) / max(done - self._before, 1)
            of = f" of {total}" if total else ""
            self._write(f"{what}: {unit} {done}{of}, {pace(seconds, unit)}{_left(seconds, done, total)}")

    def amount(self, done: int, total: int | None, what: str) -> None:
        """So many bytes of a stage are done: "reading the model: 3.1 of 8.7 GiB, 12 s left"."""
        with self._lock:
            if not self._due():
                return
            seconds = (self._last - self._begun) / max(done - self._before, 1)
            of = f" of {total / 2**30:.1f}" if total else ""
            self._write(f"{what}: {done / 2**30:.1f}{of} GiB{_left(seconds, done, total)}")

    def _due(self) -> bool:
        """Whether it is time for a line, which is then the newest."""
        now = time.monotonic()
        between = _BETWEEN_REDRAWS if self._terminal else _BETWEEN_LINES
        quick = now - self._begun < self._patience or now - self._last < between
        if self._over or quick or not self.shown:
            return False
        self._stop_timer()
        self._last = now
        return True

    def _stop_timer(self) -> None:
        """Also where it has rung already and waits for the lock."""
        self._turn += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _name(self, text: str, turn: int) -> None:
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
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._drawn = False


class Counter:
    """Counts what is done of a total, where that is known: "sampling: image 3 of 40, 2.1 s an image"."""

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
        """What is at work now."""
        self._note = f" ({text})"

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._progress.step(self._done, self._total, self._what + self._note, self._unit)


def counted(items: Iterable[_Item], total: int, what: str, unit: str) -> Iterator[_Item]:
    """The items, each counted when the next is asked for."""
    with Counter(total, what, unit) as counter:
        for item in items:
            yield item
            counter.update()


def _left(seconds: float, done: int, total: int | None) -> str:
    """Of a stage, one of whose steps takes so many seconds."""
    return f", {duration(seconds * (total - done))} left" if total and done < total else ""


def pace(seconds: float, unit: str) -> str:
    """How long one takes, or, where that is less than a second, how many are done in one."""
    if seconds >= 1:
        return f"{seconds:.3g} s {'an' if unit[0] in 'aeiou' else 'a'} {unit}"
    return f"{1 / max(seconds, 1e-9):.3g} {unit}s a second"


def duration(seconds: float) -> str:
    """Roughly: "46 s", "3 min", "2.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def check_progress(progress: Any) -> bool:
    """Whether to say what takes long: True, False, or None for yes.

    Raises:
      UserError: for anything else.
    """
    if progress is not None and not isinstance(progress, bool):
        raise UserError(f"progress must be True, False or None, not {shown(progress)}")
    return progress is None or progress
