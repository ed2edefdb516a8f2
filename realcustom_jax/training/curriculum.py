"""How hard the reference is to copy from, as a function of the step.

The reference of a training example is the training image itself. Copying it would be the easiest solution, so
its crop, scale, flip and colours are varied more and more.
"""

import dataclasses

from realcustom_jax.common.rules import LAST_STEP, option


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Strength of the reference's augmentation: linear from `start` to `end` between two steps.

    A strength of 0 is the image itself, 1 the widest range. It is the config's `curriculum`.
    """

    start: float = option(0.0, "strength of the reference's augmentation at first", low=0, high=1)
    end: float = option(1.0, "its strength at last", low=0, high=1)
    begin: int = option(0, "step at which it begins to change", int, low=0, high=LAST_STEP)
    finish: int = option(20_000, "step from which it stays", int, low=0, high=LAST_STEP)

    def strength(self, step: int) -> float:
        share = (step - self.begin) / max(self.finish - self.begin, 1)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)
