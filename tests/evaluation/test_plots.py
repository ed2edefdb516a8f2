"""Scatter plots: nearby points share a label, and the legend fits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.evaluation.plots import clusters, scatter


def test_nearby_points_share_one_label():
    """Computed by hand; a point near only to a later member of a cluster, 5 here, gets its own label."""
    points = np.array([(0, 0), (5, 0), (20, 0), (0, 11), (13, 0), (5, 12)])
    assert clusters(points, 12) == [[0, 1, 3], [2, 4], [5]]
    assert clusters(points, 1) == [[i] for i in range(6)]


@pytest.mark.parametrize("count", [3, 60])
def test_scatter_legend_fits_in_image(tmp_path: Path, count: int):
    """If a legend is too long, its frame reaches the lowest row of pixels."""
    points = {f"setting {i}": (float(i % 7), float(i)) for i in range(count)}
    scatter(tmp_path / "plot.png", {"mean": {"all": (3.0, 1.0)}, "each": points}, "x", "y")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    assert (pixels[-1] == 255).all()
    assert (pixels[:, -120:] < 255).any(axis=1).sum() > 15 * count  # rows of pixels that the legend covers
