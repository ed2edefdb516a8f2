"""Progress reports and previews between the steps of the sampler."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.progress import FunctionProgress, Progress
from realcustom_jax.common.rules import Rule, shown
from realcustom_jax.diffusion.sampler import Narrowing
from realcustom_jax.outputs.fast_preview import LinearDecoder

# (step, images): number of finished steps, from 1, and the images predicted then, uint8 (B, H, W, 3), or
# (B, h, w, 3) for fast previews.
Preview = Callable[[int, np.ndarray], Any]

_EVERY = 5
EVERY = Rule("steps between previews", int, low=1, none=str(_EVERY))
# Seconds between two reports. Longer would look like a hang; shorter would slow down small models, because
# the host waits for the device at each report.
_REPORT_INTERVAL = 0.5


@dataclasses.dataclass(frozen=True)
class Pause:
    """The loop between two steps. Each function costs time.

    Attributes:
      done: number of finished steps.
      latents: returns the z_0 predicted last.
      images: returns its images. Afterwards, an offloaded UNet is loaded again.
      narrowing: returns the word maps and token selection of the next step.
    """

    done: int
    latents: Callable[[], Array]
    images: Callable[[], np.ndarray]
    narrowing: Callable[[], Narrowing]


# Called in each pause; returns the step of the next one.
StepWatch = Callable[[Pause], int]


class Watch:
    """A `StepWatch`: decides after which steps the loop stops for a report or a preview.

    One compiled program runs any number of steps, so stopping compiles nothing.
    """

    def __init__(
        self,
        steps: int,
        progress: Progress | FunctionProgress,
        preview: Preview | None,
        every: int | None,
        fast: LinearDecoder | None = None,
    ):
        self._steps, self._progress, self._preview, self._fast = steps, progress, preview, fast
        self._every = steps if every is None else every  # without a preview it does not matter
        self._begun = 0.0  # time of the first finished step

    def __call__(self, pause: Pause) -> int:
        """Report and preview; see `StepWatch`."""
        done = pause.done
        if done == 0:
            # With progress, step 1 runs alone: it includes compiling, and must not count for the pace.
            self._progress.stage("compiling the sampler")
            return self._next_preview(0) if not self._progress.shown else 1
        preview = self._preview if done % self._every == 0 or done == self._steps else None
        if self._progress.shown or preview is not None:
            # JAX runs asynchronously: the steps are finished only when their result is ready.
            jax.block_until_ready(pause.latents())
            self._report(done)
        if preview is not None:
            preview(done, pause.images() if self._fast is None else self._fast(pause.latents()))
        return min(self._next_preview(done), self._next_report(done))

    def _report(self, done: int) -> None:
        if done == 1:
            # Compiling was part of the first step, so the pace counts from here.
            self._progress.stage("sampling", done=1)
            self._begun = time.monotonic()
        self._progress.step(done, self._steps, "sampling", "step")

    def _next_preview(self, done: int) -> int:
        """The next multiple of `every`, or the last step."""
        if self._preview is None:
            return self._steps
        return min(done - done % self._every + self._every, self._steps)

    def _next_report(self, done: int) -> int:
        """The step that is due about `_REPORT_INTERVAL` seconds from now, at the pace so far; or the next."""
        if self._progress.each_step:
            return done + 1
        if not self._progress.shown or done == 0:
            return self._steps
        pace = (time.monotonic() - self._begun) / max(done - 1, 1)
        return min(done + max(1, int(_REPORT_INTERVAL / max(pace, 1e-6))) if done > 1 else 2, self._steps)


def check_preview(preview: Any, every: Any, fast_preview: Any) -> int | None:
    """Number of steps between previews; None without a preview.

    Raises:
      UserError: for a preview that is not callable, a `fast_preview` other than True and False, or `every` or
        `fast_preview` without a preview.
    """
    if not isinstance(fast_preview, bool):
        raise UserError(f"fast_preview must be True or False, not {shown(fast_preview)}")
    if preview is None:
        if fast_preview:
            raise UserError("fast_preview needs a preview: preview=function(step, images)")
        if every is not None:
            raise UserError("every needs a preview: preview=function(step, images)")
        return None
    if not callable(preview):
        raise UserError(f"preview must be a function of a step and images, not {type(preview).__name__}")
    return EVERY.check("every", every) or _EVERY
