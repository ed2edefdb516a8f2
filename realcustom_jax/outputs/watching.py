"""Watching the sampler: progress and previews between the steps, which one compiled program runs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.progress import Progress
from realcustom_jax.common.rules import Rule

# (step, images): the number of steps done, from 1, and the images as they look then, uint8 (B, H, W, 3).
Preview = Callable[[int, np.ndarray], Any]

EVERY = Rule("steps between previews", int, low=1, none="5")
# Seconds of steps between two reports: more would look like a halt, fewer would slow small models.
_LOOK = 0.5


class Watch:
    """The `watch` of `generate.denoise`."""

    def __init__(self, steps: int, progress: Progress, preview: Preview | None, every: int | None):
        self._steps, self._progress, self._preview, self._every = steps, progress, preview, every
        self._begun = 0.0

    def __call__(self, done: int, latents: Callable[[], Array], images: Callable[[], np.ndarray]) -> int:
        """After `done` steps: report, and say at which step to look again."""
        if done == 0:
            self._progress.stage("compiling the sampler")
            return self._next_preview(0) if not self._progress.shown else 1
        preview = self._preview is not None and (done % self._every == 0 or done == self._steps)
        if self._progress.shown or preview:
            jax.block_until_ready(latents())
            self._tell(done)
        if preview:
            self._preview(done, images())
        return min(self._next_preview(done), self._next_report(done))

    def _tell(self, done: int) -> None:
        if done == 1:
            # Compiling was part of the first step, so the pace is that of those after it.
            self._progress.stage("sampling", done=1)
            self._begun = time.monotonic()
        self._progress.step(done, self._steps, "sampling", "step")

    def _next_preview(self, done: int) -> int:
        if self._preview is None:
            return self._steps
        return min(done - done % self._every + self._every, self._steps)

    def _next_report(self, done: int) -> int:
        if not self._progress.shown or done == 0:
            return self._steps
        pace = (time.monotonic() - self._begun) / max(done - 1, 1)
        return min(done + max(1, int(_LOOK / max(pace, 1e-6))) if done > 1 else 2, self._steps)


def check_preview(preview: Any, every: Any) -> int | None:
    """How many steps lie between previews; None without.

    Raises:
      UserError: for a preview that cannot be called, or `every` without one.
    """
    if preview is None:
        if every is not None:
            raise UserError("every needs a preview: preview=function(step, images)")
        return None
    if not callable(preview):
        raise UserError(f"preview must be a function of a step and images, not {type(preview).__name__}")
    return EVERY.check("every", every) or int(EVERY.none)
