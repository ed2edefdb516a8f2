"""Which points of a scatter plot share a text."""

import numpy as np

from realcustom_jax.evaluation.plots import clusters


def test_points_share_a_text_with_the_first_that_is_near():
    """Worked out by hand; a point near to a later member alone, 5 here, has a text of its own."""
    points = np.array([(0, 0), (5, 0), (20, 0), (0, 11), (13, 0), (5, 12)])
    assert clusters(points, 12) == [[0, 1, 3], [2, 4], [5]]
    assert clusters(points, 1) == [[i] for i in range(6)]
