"""Phases of sampling: ranges of steps that run the same passes, each compiled as one loop."""

import dataclasses
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realcustom_jax.options import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """A range of steps that run the same passes.

    Attributes:
      start, stop: the steps start … stop − 1.
      guided: whether the guidance branch makes new masks. If not, the last masks are reused.
      weighted: whether the guidance weights act. If not, the prediction of the generation branch is used
        alone.
    """

    start: int
    stop: int
    guided: bool
    weighted: bool


def phases(config: "SamplerConfig") -> tuple[Phase, ...]:
    """All steps in order, split at each step where a pass is added or removed."""
    # Guidance weights in start … stop − 1 alone: at the other noise levels guidance costs a pass and can hurt
    # (arXiv 2404.07724).
    start, stop = (round(share * config.steps) for share in (config.guidance_start, config.guidance_stop))
    interval = {start, stop} if start < stop else set()  # an empty interval must not split a loop
    edges = sorted({0, config.guided_steps, config.steps} | interval)
    return tuple(
        Phase(a, b, guided=a < config.guided_steps, weighted=start <= a < stop)
        for a, b in itertools.pairwise(edges)
    )
