"""How hard the reference is to copy from, as a function of the step.

The reference of a training example is the training image itself. Copying it would be the easiest solution, so
its crop, scale, flip and colours are varied more and more.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Strength of the reference's augmentation: linear from `start` to `end` between two steps.

    Attributes:
      start, end: strengths, 0 is the image itself and 1 the widest range.
      begin, finish: steps at which the change begins and ends.
    """

    start: float = 0.0
    end: float = 1.0
    begin: int = 0
    finish: int = 1

    def strength(self, step: int) -> float:
        share = (step - self.begin) / max(self.finish - self.begin, 1)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)
