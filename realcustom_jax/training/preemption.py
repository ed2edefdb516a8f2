"""The notice that a machine is about to be taken away: SIGTERM."""

import signal
import threading
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """While entered, SIGTERM does not end the process, but makes `reached` true: time to save and leave.

    With several processes JAX's own service hears the signal of any of them, and all reach the same step.
    """

    def __init__(self):
        self._noticed = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        # Python lets only the main thread handle signals; elsewhere the process's own ways stay.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save after this step and end; to be asked after every step, in all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed.is_set()
