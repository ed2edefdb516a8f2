"""Buckets of examples that may share a batch: images of similar aspect ratio, or examples of one label."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Division of a data set into buckets. A batch has examples of one bucket.

    Attributes:
      shapes: (height, width) in pixels of each bucket's batches.
      members: numbers of each bucket's examples in ascending order, at least one.
    """

    shapes: tuple[tuple[int, int], ...]
    members: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        """Number of examples in all buckets."""
        return sum(map(len, self.members))

    def digest(self) -> str:
        """A hash that identifies this division."""
        digest = hashlib.blake2b(repr(self.shapes).encode(), digest_size=8)
        for members in self.members:
            digest.update(members.tobytes())
        return digest.hexdigest()


def bucket_shapes(pixels: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Shapes with sides that are multiples of `step` and with an area of at most `pixels`.

    For each short side there is the longest possible long side, as landscape and as portrait, like the list
    of SDXL (arXiv 2307.01952).

    Args:
      pixels: largest area, such as 1024².
      step: 64 fits SD and SDXL: 8 pixels per latent, and the UNet halves the resolution up to three times.
      max_aspect: largest ratio of the long side to the short side.

    Returns:
      (height, width), from the widest to the tallest.

    Raises:
      UserError: the area is less than a square of one step.
    """
    if pixels < step * step:
        raise UserError(f"buckets in steps of {step} pixels need images of at least {step}×{step}")
    shapes = set()
    for short in range(step, math.isqrt(pixels) + 1, step):
        long = pixels // short // step * step
        if long <= max_aspect * short:
            shapes |= {(short, long), (long, short)}
    if not shapes:  # only a square is within the ratio, and its area is less than `pixels`
        side = math.isqrt(pixels) // step * step
        shapes = {(side, side)}
    return sorted(shapes, key=lambda shape: shape[0] / shape[1])


def nearest(sizes: np.ndarray, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The bucket with the most similar aspect ratio, for each image.

    Args:
      sizes: (examples, 2) width and height of each image, from `Split.sizes`.
      shapes: (height, width) of the buckets, in the order of `bucket_shapes`.

    Returns:
      int16 (examples,), indices into `shapes`.
    """
    # Logarithms, because ratios are compared by their quotient: 2:1 is as far from 1:1 as 1:2 is.
    tallness = np.log([height / width for height, width in shapes])
    between = (tallness[1:] + tallness[:-1]) / 2
    return np.searchsorted(between, np.log(sizes[:, 1] / sizes[:, 0])).astype(np.int16)


def label_buckets(labels: Sequence[str], shape: tuple[int, int]) -> Buckets:
    """Make one bucket for each label, all with the same shape. `labels` has the label of each example."""
    places: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        places.setdefault(label, []).append(number)
    # Sorted, so that the buckets do not depend on the order in which labels first appear.
    members = tuple(np.asarray(places[label], np.int32) for label in sorted(places))
    return Buckets((shape,) * len(members), members)


def make_buckets(sizes: np.ndarray, shapes: Sequence[tuple[int, int]]) -> Buckets:
    """Put each image into its `nearest` bucket. Buckets without images are left out."""
    bucket = nearest(sizes, shapes)
    used = np.unique(bucket)
    members = tuple(np.flatnonzero(bucket == i).astype(np.int32) for i in used)
    return Buckets(tuple(tuple(shapes[i]) for i in used), members)
