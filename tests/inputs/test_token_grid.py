"""The order of visual tokens, for each projector."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from realcustom_jax.inputs.token_grid import token_grid


def test_tokens_of_the_shallow_projector_are_two_grids(micro_models):
    """Photo by photo, and in each photo layer by layer."""
    realcustom = dataclasses.replace(micro_models.realcustom, projector="shallow")
    models = SimpleNamespace(realcustom=realcustom, image_configs=micro_models.image_configs)
    grid = token_grid(models, photos=2)
    assert grid.shape == (2, 2, 4, 4) and grid.layers == ("global", "shallow")
    tokens = np.zeros(64)
    tokens[32:48] = 1  # the first layer of the second photo
    tokens[5] = 1  # second row, second column
    expected = np.stack([np.zeros((4, 4)), np.full((4, 4), 0.5)])
    expected[0, 1, 1] = 0.5
    np.testing.assert_array_equal(grid.patches(tokens), expected)


def test_grid_of_a_plain_projector_is_one_view(micro_models):
    grid = token_grid(micro_models)
    assert grid.shape == (1, 1, 4, 4) and grid.layers == ("global",)
