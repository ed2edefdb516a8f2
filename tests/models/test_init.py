"""Parameter shapes without allocation: traced once per module, and a new tree for each call."""

import flax.linen as nn
import jax
import numpy as np

from realcustom_jax.models.init import param_shapes

IMAGES = np.zeros((2, 5, 3), np.float32)


def test_param_shapes_traces_each_module_once():
    calls = []

    class Counted(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            calls.append(self.width)
            return nn.Dense(self.width, use_bias=False)(x)

        def twice(self, x):
            return self(x) * 2

    shapes = [param_shapes(Counted(width), IMAGES) for width in (4, 4, 7)]
    assert calls == [4, 7]
    kernels = [tree["Dense_0"]["kernel"] for tree in shapes]
    assert [kernel.shape for kernel in kernels] == [(3, 4), (3, 4), (3, 7)]
    assert {kernel.dtype for kernel in kernels} == {np.dtype(np.float32)}
    param_shapes(Counted(4), IMAGES[:1])  # arguments of other shapes, and other methods, are traced
    param_shapes(Counted(4), IMAGES, method="twice")
    assert calls == [4, 7, 4, 4]


def test_param_shapes_equal_init_and_are_mutable():
    shapes = param_shapes(nn.Dense(6), IMAGES)
    params = nn.Dense(6).init(jax.random.key(0), IMAGES)["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {"kernel": (3, 6), "bias": (6,)}
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    del shapes["bias"]
    assert set(param_shapes(nn.Dense(6), IMAGES)) == {"kernel", "bias"}
