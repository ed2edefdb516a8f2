"""The measures, as plain functions of arrays; nothing here knows a model."""

from collections.abc import Sequence

import numpy as np
import scipy.stats


def clip_t(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine similarity of each image with its own text: unit vectors (n, C), (n, C) → (n,)."""
    return np.sum(images * texts, axis=-1)


def image_similarity(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """CLIP-I or DINO-I of each image: its mean cosine similarity with *all* references of its subject.

    The mean of these over the images of a subject is that over all pairs, generated × references.

    Args:
      images: (n, C) unit vectors of the generated images of one subject.
      references: (m, C) of the subject's photos.

    Returns:
      (n,).
    """
    return (images @ references.T).mean(axis=1)


def iou(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Intersection over union of bool (n, H, W) with (n, H, W) → (n,); 0 where both are empty."""
    both = (masks & regions).sum(axis=(1, 2))
    either = (masks | regions).sum(axis=(1, 2))
    return both / np.maximum(either, 1)


def leakage(images: np.ndarray, plain: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How much an image differs from the text-only image of the same seed where the subject is not.

    Args:
      images, plain: uint8 (n, H, W, 3).
      inside: bool (n, H, W), where the subject is in either of them.

    Returns:
      (n,) mean absolute difference of the pixels outside, as a share of the range of 255; 0 where nothing is
      outside.
    """
    change = np.abs(images.astype(np.float64) - plain).mean(axis=-1) / 255.0
    outside = ~inside
    return (change * outside).sum(axis=(1, 2)) / np.maximum(outside.sum(axis=(1, 2)), 1)


def rank(queries: np.ndarray, candidates: np.ndarray, truth: int = 0) -> np.ndarray:
    """How many other candidates are as near as the true one, or nearer.

    Args:
      queries: (n, C) unit vectors.
      candidates: (n, K, C), those that each is compared with.
      truth: index of the true one.

    Returns:
      (n,) whole numbers; 0 where the true one is found, which among equal ones it is not.
    """
    similarity = np.einsum("nc,nkc->nk", queries, candidates)
    others = np.delete(similarity, truth, axis=1)
    return (others >= similarity[:, truth, None]).sum(axis=1)


def interval(
    values: Sequence[float],
    level: float = 0.95,
    resamples: int = 10_000,
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Bootstrap interval of the mean (percentiles, seed 0).

    Args:
      values: (n,), one for each image.
      level, resamples: of the interval.
      groups: what images have in common, such as their subject. Then whole groups are drawn with replacement,
        for images of one are alike; None draws images.

    Returns:
      low and high end; both the mean itself where there is only one to draw.
    """
    values = np.asarray(values, np.float64)
    if groups is None:
        sums, counts = values, np.ones(len(values))
    else:
        _, place = np.unique(np.asarray(groups), return_inverse=True)
        sums, counts = np.bincount(place, values), np.bincount(place)
    if len(sums) < 2:
        return (float(values.mean()),) * 2

    def mean(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    result = scipy.stats.bootstrap(
        (sums, counts), mean, paired=True, vectorized=True, confidence_level=level, n_resamples=resamples,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
