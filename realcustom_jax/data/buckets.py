"""Which examples may share a batch: images of like proportions, so that little is cropped, or of a label."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Which examples of a data set may share a batch, and of which shape it is.

    Attributes:
      shapes: (height, width) in pixels of each bucket, which holds one example or more.
      members: the numbers of each bucket's examples, in order.
    """

    shapes: tuple[tuple[int, int], ...]
    members: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        """Examples in all buckets."""
        return sum(map(len, self.members))

    def digest(self) -> str:
        """Tells two divisions apart."""
        digest = hashlib.blake2b(repr(self.shapes).encode(), digest_size=8)
        for members in self.members:
            digest.update(members.tobytes())
        return digest.hexdigest()


def bucket_shapes(pixels: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Shapes whose sides are multiples of `step` and whose area is as near below `pixels` as that allows.

    For each width there is the largest height, and each shape lies there upright too, as in SDXL's list.

    Args:
      pixels: the budget, such as 1024².
      step: 64 fits SD and SDXL: 8 pixels a latent, and three halvings inside the UNet.
      max_aspect: of the long side, in short sides.

    Returns:
      (height, width), from the widest to the tallest.

    Raises:
      UserError: the budget has no room for a square of one step.
    """
    if pixels < step * step:
        raise UserError(f"buckets in steps of {step} pixels need images of at least {step}×{step}")
    shapes = set()
    for short in range(step, math.isqrt(pixels) + 1, step):
        long = pixels // short // step * step
        if long <= max_aspect * short:
            shapes |= {(short, long), (long, short)}
    if not shapes:  # no shape but the square is within the limit, and the budget is not quite one
        side = math.isqrt(pixels) // step * step
        shapes = {(side, side)}
    return sorted(shapes, key=lambda shape: shape[0] / shape[1])


def nearest(sizes: np.ndarray, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The bucket whose proportions are nearest to an image's, by the ratio of the ratios.

    Args:
      sizes: (examples, 2) width and height of each image, as `Split.sizes` has it.
      shapes: (height, width) of the buckets, as `bucket_shapes` orders them.

    Returns:
      int16 (examples,), the place in `shapes`.
    """
    tallness = np.log([height / width for height, width in shapes])
    between = (tallness[1:] + tallness[:-1]) / 2
    return np.searchsorted(between, np.log(sizes[:, 1] / sizes[:, 0])).astype(np.int16)


def label_buckets(labels: Sequence[str], shape: tuple[int, int]) -> Buckets:
    """A bucket for each label, all of one shape: batches of one label. `labels` has that of each example."""
    places: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        places.setdefault(label, []).append(number)
    members = tuple(np.asarray(places[label], np.int32) for label in sorted(places))
    return Buckets((shape,) * len(members), members)


def make_buckets(sizes: np.ndarray, shapes: Sequence[tuple[int, int]]) -> Buckets:
    """Puts each image into its `nearest` bucket; those that get none are left out."""
    bucket = nearest(sizes, shapes)
    found = np.unique(bucket)
    members = tuple(np.flatnonzero(bucket == i).astype(np.int32) for i in found)
    return Buckets(tuple(tuple(shapes[i]) for i in found), members)
