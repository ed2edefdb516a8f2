"""Parameter shapes without allocation: traced once per module, and a new tree for each call."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.encoder import EncoderLayer
from realcustom_jax.models.init import _traced_shapes, param_shapes
from realcustom_jax.models.layers import ResnetBlock
from realcustom_jax.models.vit import ViT, ViTConfig

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


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (ResnetBlock(64), (1, 4, 4, 32)),
        (EncoderLayer(2, 16, "gelu", 1e-5, layer_scale=True), (1, 3, 8)),
        (ViT(ViTConfig(8, 4, 16, 32, 1, 2, registers=2)), (1, 8, 8, 3)),
    ],
)
def test_param_shapes_draw_no_random_numbers(module, shape, monkeypatch):
    """They equal the shapes that Flax's own initialisation gives, which draws many."""
    x, key, eval_shape, traced = jnp.zeros(shape), jax.random.key(0), jax.eval_shape, []

    def spy(function, *args):
        traced.append(str(jax.make_jaxpr(function)(*args)))
        return eval_shape(function, *args)

    _traced_shapes.cache_clear()
    monkeypatch.setattr(jax, "eval_shape", spy)
    shapes = param_shapes(module, x)
    assert shapes == jax.eval_shape(lambda x: module.init(key, x), x)["params"]
    assert ["random_bits" in jaxpr for jaxpr in traced] == [False, True]
