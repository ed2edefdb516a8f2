"""How fast a run is, and what holds it up: times of steps, waiting for data, utilisation, memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from realcustom_jax.common.chips import chip_of


class Meter:
    """Rates since they were last asked for.

    Args:
      batch_size: images of a step, over all processes.
    """

    def __init__(self, batch_size: int):
        self._batch_size, self._peak_share = batch_size, None
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def count(self, flops: Callable[[], float]) -> None:
        """Have utilisation told too, where the devices' peak is known.

        Args:
          flops: gives the operations of a step over all devices; called only then, as it must trace the step.
        """
        chip = chip_of(jax.local_devices()[0].device_kind)
        if chip:
            self._peak_share = flops() / chip.peak / jax.device_count()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a batch from the loader: how long the step had to wait for its data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def aside(self, pending: Any) -> Iterator[None]:
        """Around what is not training: its time does not count, but that of the `pending` arrays does."""
        jax.block_until_ready(pending)
        started = time.perf_counter()
        yield
        self._start += time.perf_counter() - started

    def step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates of the steps since the last reading; to be asked once they are done.

        Returns:
          images_per_second, step_seconds, input_wait (share of the time), and where the devices tell:
          utilisation (share of the peak operations of the TPUs) and memory_gib (most ever used of the first).
        """
        now = time.perf_counter()
        seconds, steps = max(now - self._start, 1e-9), max(self._steps, 1)
        values = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "input_wait": min(self._waited / seconds, 1.0),
        }
        if self._peak_share:
            values["utilisation"] = self._peak_share * steps / seconds
        used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if used:
            values["memory_gib"] = used / 2**30
        self._start, self._steps, self._waited = now, 0, 0.0
        return values
