"""Which points of a scatter plot share a text, and that its legend is whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.evaluation.plots import clusters, scatter


def test_points_share_a_text_with_the_first_that_is_near():
    """Worked out by hand; a point near to a later member alone, 5 here, has a text of its own."""
    points = np.array([(0, 0), (5, 0), (20, 0), (0, 11), (13, 0), (5, 12)])
    assert clusters(points, 12) == [[0, 1, 3], [2, 4], [5]]
    assert clusters(points, 1) == [[i] for i in range(6)]


@pytest.mark.parametrize("count", [3, 60])
def test_the_legend_of_a_scatter_plot_ends_within_the_picture(tmp_path: Path, count: int):
    """If a legend is too long, its frame reaches the lowest row of pixels."""
    points = {f"setting {i}": (float(i % 7), float(i)) for i in range(count)}
    scatter(tmp_path / "plot.png", {"mean": {"all": (3.0, 1.0)}, "each": points}, "x", "y")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    assert (pixels[-1] == 255).all()
    assert (pixels[:, -120:] < 255).any(axis=1).sum() > 15 * count  # rows of pixels that the legend covers
