"""Helpers of the tests of `rc.sample`; loaded by `runpy`, as tests are no package."""

import numpy as np

import realcustom_jax as rc
from realcustom_jax.toybox import Identity, render_reference

CAT = render_reference(Identity("cat", 9)).image
SUBJECT = rc.Subject(CAT, "cat")
FEW = {"steps": 2}


def assert_same_picture(image: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to one level: another batch size is another program, and float32 rounding may cross a .5."""
    assert image.dtype == expected.dtype == np.uint8
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1
