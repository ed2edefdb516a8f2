"""The phases of sampling: steps that run the same passes, each compiled as one loop."""

import dataclasses
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realcustom_jax.options import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that run the same passes.

    Attributes:
      start, stop: the steps start … stop − 1.
      guided: whether the guidance branch makes new masks; else the last ones are reused.
      weighted: whether the guidance weights act; else the generation branch's prediction is taken as it is.
    """

    start: int
    stop: int
    guided: bool
    weighted: bool


def phases(config: "SamplerConfig") -> tuple[Phase, ...]:
    """All steps in order, cut where a pass is added or left out."""
    start, stop = (round(share * config.steps) for share in (config.guidance_start, config.guidance_stop))
    interval = {start, stop} if start < stop else set()
    edges = sorted({0, config.guided_steps, config.steps} | interval)
    return tuple(
        Phase(a, b, guided=a < config.guided_steps, weighted=start <= a < stop)
        for a, b in itertools.pairwise(edges)
    )
