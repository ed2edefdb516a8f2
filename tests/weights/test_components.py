"""Casting weights when they are read."""

import ml_dtypes
import numpy as np
import pytest

from realcustom_jax.weights.components import cast


def test_all_float16_values_become_the_same_bfloat16_as_by_astype():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)  # also infinities and NaNs
    with np.errstate(invalid="ignore"):  # signalling NaNs
        result, expected = cast(values, ml_dtypes.bfloat16), values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(result.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("shape", [(), (0, 4), (1, 1), (3, 3, 64, 32), (600, 700)])
def test_cast_keeps_shape_and_layout(shape):
    """A transposed kernel stays a view of its layout in the file, in parts and as a whole."""
    values = np.asarray(np.random.default_rng(0).normal(size=shape), np.float16)
    for value in (values, values.T):
        result, expected = cast(value, ml_dtypes.bfloat16), value.astype(ml_dtypes.bfloat16)
        assert result.dtype == expected.dtype and result.strides == expected.strides
        np.testing.assert_array_equal(result, expected)


def test_other_dtypes_are_cast_by_numpy():
    values = np.asarray([1.5, 2.5], np.float32)
    assert cast(values, np.float32) is values
    assert cast(values, ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
