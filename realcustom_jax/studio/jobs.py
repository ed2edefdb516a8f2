"""Runs long work in threads, one user after the other, with reports and a way to stop it."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import numpy as np

from realcustom_jax.common.errors import UserError

_Result = TypeVar("_Result")
# Seconds between two looks at the line of waiting users.
_LOOK = 0.05
# Unfinished jobs of all users, at most; each holds a thread.
MOST_JOBS = 64


class Stopped(Exception):
    """The user stopped the work, or closed the page."""


@dataclasses.dataclass(frozen=True)
class Update:
    """What a user sees while work runs.

    Attributes:
      text: the stage, "sampling: step 3 of 25".
      share: finished share of the stage, 0 to 1; None if unknown.
      images: the images predicted last, uint8 (B, H, W, 3), or None.
    """

    text: str
    share: float | None = None
    images: np.ndarray | None = None


class Report:
    """The `progress` and `preview` functions of one job; `progress` raises `Stopped` once it is stopped."""

    def __init__(self, stop: threading.Event, show: Callable[[Update], None]):
        self._stop, self._show = stop, show
        self._images: np.ndarray | None = None

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """See `common.progress.ProgressFunction`."""
        if self._stop.is_set():
            raise Stopped
        text = f"{stage}: step {done} of {total}" if total else stage
        self._show(Update(text, done / total if total else None, self._images))

    def preview(self, step: int, images: np.ndarray) -> None:
        """See `outputs.watching.Preview`."""
        self._images = images


class Jobs:
    """The jobs of all users. One runs at a time, because there is one model; the others wait in order."""

    def __init__(self):
        self._lock = threading.Lock()
        self._line: list[tuple[str, threading.Event]] = []  # (user, stop); the first one runs

    def run(self, user: str, work: Callable[[Report], _Result]) -> Generator[Update, None, _Result]:
        """Run work in a thread when it is its turn.

        Closing the generator stops the work; so does `stop`.

        Args:
          user: whose work it is, the session of a browser's tab.
          work: the work; it passes on the functions of the report.

        Yields:
          What to show.

        Returns:
          The result of the work.

        Raises:
          Stopped: if it was stopped.
          UserError: if too many jobs wait.
        """
        updates: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = self._join(user)
        # The thread does not depend on the generator: an abandoned one cannot hold up the line.
        threading.Thread(target=self._body, args=((user, stop), work, updates), daemon=True).start()
        try:
            while True:
                update = updates.get()
                while isinstance(update, Update) and not updates.empty():  # only the newest matters
                    update = updates.get()
                if isinstance(update, Update):
                    yield update
                elif isinstance(update, BaseException):
                    raise update
                else:
                    return update[0]
        finally:
            stop.set()

    def finish(self, user: str, work: Callable[[Report], _Result]) -> _Result:
        """Run work to its end, without showing anything."""
        run = self.run(user, work)
        while True:
            try:
                next(run)
            except StopIteration as end:
                return end.value

    def stop(self, user: str) -> bool:
        """Stop all work of a user, within one denoising step; returns whether there was any."""
        with self._lock:
            own = [stop for other, stop in self._line if other == user]
        for stop in own:
            stop.set()
        return bool(own)

    def busy(self, user: str) -> bool:
        """Whether work of a user runs or waits."""
        with self._lock:
            return any(other == user for other, _ in self._line)

    def __len__(self) -> int:
        """Number of jobs that run or wait."""
        with self._lock:
            return len(self._line)

    def _join(self, user: str) -> threading.Event:
        stop = threading.Event()
        with self._lock:
            if len(self._line) >= MOST_JOBS:
                raise UserError(f"{len(self._line)} requests are waiting already: try again later")
            self._line.append((user, stop))
        return stop

    def _body(self, ticket: tuple[str, threading.Event], work: Callable[[Report], Any], updates: Any) -> None:
        """The thread of a job: waits for its turn, works, and reports the error, or the result in a tuple."""
        _, stop = ticket
        try:
            self._wait(ticket, updates.put)
            updates.put((work(Report(stop, updates.put)),))
        except BaseException as error:
            updates.put(error)
        finally:
            with self._lock:
                self._line.remove(ticket)

    def _wait(self, ticket: tuple[str, threading.Event], show: Callable[[Update], None]) -> None:
        """Return when it is the turn of a job."""
        shown = 0
        while True:
            with self._lock:
                before = self._line.index(ticket)
            if ticket[1].is_set():
                raise Stopped
            if before == 0:
                return
            if before != shown:
                shown = before
                show(Update(f"waiting: {before} {'request' if before == 1 else 'requests'} first"))
            time.sleep(_LOOK)
