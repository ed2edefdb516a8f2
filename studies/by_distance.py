"""Changes by the distance from where a subject is, for the scripts here that ask what leaks."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage


def by_distance(changes: np.ndarray, subjects: np.ndarray, ends: Sequence[float]) -> np.ndarray:
    """Mean changes of rings around a subject, the first of which is the subject itself.

    Args:
      changes: (n, h, w).
      subjects: bool (n, h, w).
      ends: outer ends of the rings, in pixels, rising from 0; one more ring has all beyond.

    Returns:
      (n, rings); NaN for a ring without pixels, and for all of an image without a subject.
    """
    found = np.full((len(changes), len(ends) + 1), np.nan)
    for n in np.flatnonzero(subjects.any(axis=(1, 2))):
        ring = np.searchsorted(ends, scipy.ndimage.distance_transform_edt(~subjects[n]))
        for r in np.unique(ring):
            found[n, r] = changes[n][ring == r].mean()
    return found
