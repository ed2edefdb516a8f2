"""Where each of several subjects acts in a training pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

# Largest share of the image in which one of several subjects acts; the sampler's γ_scope is 0.25.
WIDEST = 0.3


def scopes(masks: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the area in which each of an example's subjects acts.

    A lone subject acts everywhere, as published. Several share the image, as the sampler's masks let them:
    each acts around itself, in a random share of the image between its own area and `WIDEST`, but not where
    another is nearer.

    Args:
      masks: the regions of the subjects, each bool (H, W) and not empty if there are several.
      rng: draws the shares.

    Returns:
      For each bool (H, W).
    """
    if len(masks) == 1:
        return [np.ones_like(masks[0])]
    distances: list[Any] = [ndimage.distance_transform_edt(~mask) for mask in masks]
    nearest = np.argmin(distances, axis=0)
    areas = []
    for r, (mask, distance) in enumerate(zip(masks, distances, strict=True)):
        share = rng.uniform(mask.mean(), max(mask.mean(), WIDEST))
        areas.append((nearest == r) & (distance <= np.quantile(distance, share)))
    return areas
