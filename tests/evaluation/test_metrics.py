"""The evaluation metrics against plain numpy loops and scipy."""

import numpy as np
import scipy.stats

from realcustom_jax.evaluation import metrics
from realcustom_jax.evaluation.tables import cell, table


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_similarities_are_mean_cosines():
    """To 1e-12: float64 sums in another order."""
    rng = np.random.default_rng(0)
    images, texts, photos = unit(rng, 5, 8), unit(rng, 5, 8), unit(rng, 3, 8)
    expected_t, expected_i = [], []
    for image, text in zip(images, texts, strict=True):
        expected_t.append(sum(a * b for a, b in zip(image, text, strict=True)))
        expected_i.append(np.mean([sum(a * b for a, b in zip(image, p, strict=True)) for p in photos]))
    np.testing.assert_allclose(metrics.clip_t(images, texts), expected_t, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.image_similarity(images, photos), expected_i, rtol=0, atol=1e-12)


def test_iou_counts_pixels():
    a, b = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    a[0, :2], b[0, 1:3] = True, True  # 4 pixels of 12 in common
    a[1], b[1, 0, 0] = True, True
    np.testing.assert_allclose(metrics.iou(a, b), [4 / 12, 1 / 16, 0.0])


def test_leakage_is_mean_change_outside_subject():
    rng = np.random.default_rng(1)
    images, plain = rng.integers(0, 256, (2, 3, 4, 4, 3), dtype=np.uint8)
    inside = rng.random((3, 4, 4)) < 0.4
    inside[2] = True  # nothing is outside
    expected = []
    for image, other, own in zip(images, plain, inside, strict=True):
        changes = [
            np.mean([abs(int(image[y, x, c]) - int(other[y, x, c])) / 255 for c in range(3)])
            for y in range(4)
            for x in range(4)
            if not own[y, x]
        ]
        expected.append(np.mean(changes) if changes else 0.0)
    assert expected[0] > 0.1
    np.testing.assert_allclose(metrics.leakage(images, plain, inside), expected, rtol=0, atol=1e-12)


def test_rank_counts_nearer_candidates_and_ties():
    rng = np.random.default_rng(2)
    candidates = unit(rng, 50, 4, 3)
    queries = unit(rng, 50, 3)
    expected = []
    for q, c in zip(queries, candidates, strict=True):
        order = sorted(range(4), key=lambda k: -float(q @ c[k]))
        expected.append(order.index(2))
    assert metrics.rank(queries, candidates, truth=2).tolist() == expected and set(expected) == {0, 1, 2, 3}
    same = np.repeat(unit(rng, 1, 1, 3), 4, axis=1)
    assert metrics.rank(same[:, 0], same).tolist() == [3]


def test_interval_equals_bootstrap_percentiles():
    """Against our own resampling. Means of 60 are multiples of 1/60, and each end may differ by one step."""
    values = np.random.default_rng(3).random(60) < 0.3
    rng = np.random.default_rng(4)
    draws = [values[rng.integers(0, 60, 60)].mean() for _ in range(10_000)]
    expected = np.percentile(draws, [2.5, 97.5])
    found = metrics.interval(values)
    np.testing.assert_allclose(found, expected, atol=1.01 / 60)
    # The normal approximation, as an independent check of the width: within a tenth of it.
    width = 2 * scipy.stats.norm.ppf(0.975) * values.std() / np.sqrt(60)
    assert abs((found[1] - found[0]) / width - 1) < 0.1
    assert metrics.interval(values) == found
    assert metrics.interval([0.5]) == (0.5, 0.5)
    assert metrics.interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_table_has_one_cell_per_metric():
    rows = {
        "text only": {"clip_t": [0.25, 0.25], "leakage": None},
        "full": {"clip_t": [0.5], "leakage": [1.0]},
    }
    lines = table(rows, ["clip_t", "leakage"]).splitlines()
    assert lines == [
        "| setting | CLIP-T | leakage |",
        "|---|---|---|",
        "| text only | 0.250 [0.250, 0.250] | – |",
        "| full | 0.500 [0.500, 0.500] | 1.000 [1.000, 1.000] |",
    ]
    assert cell([0.0, 1.0], with_interval=False) == "0.500"


def test_interval_resamples_whole_groups():
    """30 subjects of 20 equal images each: the interval is that of 30 numbers, not of 600."""
    means = np.random.default_rng(3).normal(size=30)
    values, groups = np.repeat(means, 20), np.repeat([f"subject {i}" for i in range(30)], 20)
    low, high = metrics.interval(values, groups=groups)
    # A numpy transcription of the same draw: 4 standard errors of a percentile of 10,000 are about 0.02.
    drawn = np.random.default_rng(5).choice(means, (10_000, 30)).mean(axis=1)
    np.testing.assert_allclose((low, high), np.percentile(drawn, (2.5, 97.5)), atol=0.03)
    narrow = metrics.interval(values)
    assert high - low > 3 * (narrow[1] - narrow[0])
    assert metrics.interval([1.0, 3.0], groups=["a", "a"]) == (2.0, 2.0)
