"""Mean change by the distance from a subject, for the studies of leakage."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage


def by_distance(changes: np.ndarray, subjects: np.ndarray, ends: Sequence[float]) -> np.ndarray:
    """Mean change in each ring around a subject; the first ring is the subject itself.

    Args:
      changes: change of each pixel (n, h, w).
      subjects: masks of the subjects, bool (n, h, w).
      ends: outer radii of the rings in pixels, ascending from 0; a last ring holds everything beyond.

    Returns:
      (n, rings); NaN for a ring without pixels and for an image without a subject.
    """
    means = np.full((len(changes), len(ends) + 1), np.nan)
    for n in np.flatnonzero(subjects.any(axis=(1, 2))):
        ring = np.searchsorted(ends, scipy.ndimage.distance_transform_edt(~subjects[n]))
        for r in np.unique(ring):
            means[n, r] = changes[n][ring == r].mean()
    return means
