"""The metrics, as plain functions of arrays, independent of any model."""

from collections.abc import Sequence

import numpy as np
import scipy.stats


def clip_t(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """CLIP-T: cosine similarity of each image with its own text, unit vectors (n, C), (n, C) → (n,)."""
    return np.sum(images * texts, axis=-1)


def image_similarity(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """CLIP-I or DINO-I: mean cosine similarity of each image with *all* references of its subject.

    Args:
      images: (n, C) unit vectors of the generated images of one subject.
      references: (m, C) unit vectors of the subject's photos.

    Returns:
      (n,).
    """
    # As in DreamBooth, whose score is the mean over all pairs of a generated and a real image.
    return (images @ references.T).mean(axis=1)


def iou(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Intersection over union of bool (n, H, W) and (n, H, W) → (n,); 0 if both are empty."""
    both = (masks & regions).sum(axis=(1, 2))
    either = (masks | regions).sum(axis=(1, 2))
    return both / np.maximum(either, 1)  # never 0 / 0


def leakage(images: np.ndarray, plain: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Difference between an image and the text-only image of the same seed, outside of the subject.

    Args:
      images, plain: uint8 (n, H, W, 3).
      inside: bool (n, H, W), the region of the subject in either image.

    Returns:
      (n,) mean absolute difference of the pixels outside, as a share of 255; 0 if there are none.
    """
    # float64, because uint8 differences would wrap around.
    change = np.abs(images.astype(np.float64) - plain).mean(axis=-1) / 255.0
    outside = ~inside
    return (change * outside).sum(axis=(1, 2)) / np.maximum(outside.sum(axis=(1, 2)), 1)


def rank(queries: np.ndarray, candidates: np.ndarray, truth: int = 0) -> np.ndarray:
    """Rank of the true candidate: the number of other candidates that are at least as similar.

    Args:
      queries: (n, C) unit vectors.
      candidates: (n, K, C) unit vectors, K for each query.
      truth: index of the true candidate.

    Returns:
      (n,) integers; 0 is a hit. A tie is not a hit, so a constant encoder scores no hits.
    """
    similarity = np.einsum("nc,nkc->nk", queries, candidates)
    others = np.delete(similarity, truth, axis=1)
    return (others >= similarity[:, truth, None]).sum(axis=1)


def interval(
    values: Sequence[float] | np.ndarray,
    level: float = 0.95,
    resamples: int = 10_000,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Bootstrap interval of the mean (percentile method, seed 0).

    Args:
      values: (n,), one for each image.
      level: confidence level.
      resamples: number of resamples.
      groups: group of each image, such as its subject. Whole groups are then drawn with replacement; None
        draws single images.

    Returns:
      low and high end; both are the mean if there is only one image or group.
    """
    values = np.asarray(values, np.float64)
    if groups is None:
        sums, counts = values, np.ones(len(values))
    else:
        # Images of a group are similar: drawing single ones would make the interval too narrow. Sums and
        # counts per group are enough to compute the mean of any resample.
        _, place = np.unique(np.asarray(groups), return_inverse=True)
        sums, counts = np.bincount(place, values), np.bincount(place)
    if len(sums) < 2:  # scipy rejects a single sample
        only = float(values.mean())
        return only, only

    def mean(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    result = scipy.stats.bootstrap(
        (sums, counts), mean, paired=True, vectorized=True, confidence_level=level, n_resamples=resamples,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
