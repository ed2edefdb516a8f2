"""Phases of sampling: ranges of steps that run the same passes, each compiled as one loop."""

import dataclasses
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realcustom_jax.options import SamplerConfig

# Latent pixels up to which making refined word maps costs nothing that can be measured.
_FEW_PIXELS = 32 * 32


@dataclasses.dataclass(frozen=True)
class Phase:
    """A range of steps that run the same passes.

    Attributes:
      start, stop: the steps start … stop − 1.
      guided: whether the guidance branch makes word maps. Its steps before `guided_steps` cut new masks from
        them; all other steps reuse the last masks.
      weighted: whether the guidance weights act. If not, the prediction of the generation branch is used
        alone.
    """

    start: int
    stop: int
    guided: bool
    weighted: bool


def phases(config: "SamplerConfig", has_subjects: bool = True) -> tuple[Phase, ...]:
    """All steps in order, split at each step where a pass is added or removed."""
    # Guidance weights in start … stop − 1 alone: at the other noise levels guidance costs a pass and can hurt
    # (arXiv 2404.07724).
    start, stop = (round(share * config.steps) for share in (config.guidance_start, config.guidance_stop))
    interval = {start, stop} if start < stop else set()  # an empty interval must not split a loop
    edges = sorted({0, config.guided_steps, config.steps} | interval)
    found: list[Phase] = []
    for a, b in itertools.pairwise(edges):
        phase = Phase(a, b, has_subjects and a < config.guided_steps, start <= a < stop)
        if found and _share_a_loop(found[-1], phase, config, has_subjects):
            found[-1] = dataclasses.replace(found[-1], stop=b)
        else:
            found.append(phase)
    return tuple(found)


def phase_of(config: "SamplerConfig", step: int, has_subjects: bool = True) -> Phase:
    """The phase of a step, `guided` only if this step makes new masks."""
    phase = next(phase for phase in phases(config, has_subjects) if step < phase.stop)
    return dataclasses.replace(phase, guided=phase.guided and step < config.guided_steps)


def text_pass(config: "SamplerConfig", weighted: bool, has_subjects: bool) -> bool:
    """Whether the prediction needs ε_T, also in steps that reuse the masks."""
    # ε_T is a term of eq. 13. It is also the prediction outside the masks with `guidance_scope` "mask".
    return (config.guidance == "paper" and weighted) or (config.guidance_scope == "mask" and has_subjects)


def _share_a_loop(before: Phase, after: Phase, config: "SamplerConfig", has_subjects: bool) -> bool:
    if before.weighted != after.weighted:
        return False
    # If both run the text-only pass, only the word maps differ. A second loop would add all passes again to
    # compile. But refined maps need self-attention matrices, which grow with the square of the pixels: for
    # SD1.5 they would make each step that reuses masks a sixth slower.
    small = config.mask_refine == "none" or config.height * config.width <= _FEW_PIXELS
    return before.guided == after.guided or (small and text_pass(config, after.weighted, has_subjects))
