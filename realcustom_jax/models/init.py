"""Fresh parameters without compiling `model.init`.

Compiling an initialiser with hundreds of random draws takes XLA a minute on CPU and says nothing about the
model. Shapes come from `jax.eval_shape`; values from numpy, one generator per parameter seeded by its path,
so that they depend neither on devices nor on other parameters.
"""

import functools
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np


def param_shapes(module: nn.Module, *args: Any, method: Callable[..., Any] | str | None = None) -> Any:
    """The `params` tree of a module as shapes and dtypes.

    Tracing a UNet takes seconds, so the same method of an equal module is traced once.

    Args:
      module: of any size, as nothing is allocated; hashable, so its sequences are tuples.
      args: what it is called with, arrays or their shapes.
      method: what is called, as for `module.init`; a function that is defined again is another one.

    Raises:
      TypeError: for a module that is not hashable.
    """
    leaves, structure = jax.tree.flatten(args)
    leaves = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(module, structure, leaves, method))  # a new tree


@functools.lru_cache(maxsize=64)  # the components of several models
def _traced_shapes(module: nn.Module, structure: Any, leaves: tuple[Any, ...], method: Any) -> Any:
    def init(*args: Any) -> Any:
        return module.init(jax.random.key(0), *args, method=method)

    return jax.eval_shape(init, *jax.tree.unflatten(structure, leaves))["params"]


def init_params(shapes: Any, seed: int, zeros: str | None = None) -> Any:
    """Numpy parameters for a tree of shapes, by the name of the leaf.

    Kernels are normal with variance 1/fan_in, embeddings and tokens normal with 0.02, scales 1, biases 0.

    Args:
      shapes: nested dict whose leaves have `.shape`.
      seed: of the whole tree.
      zeros: a regex; kernels whose path ("a/b/kernel") it finds start at 0, so that what is added to a model
        begins as the identity.
    """
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    values = {path: _initial(path, leaf.shape, seed, zeros) for path, leaf in flat.items()}
    return flax.traverse_util.unflatten_dict(values, sep="/")


def _initial(path: str, shape: tuple[int, ...], seed: int, zeros: str | None) -> np.ndarray:
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "bias" or (zeros and re.search(zeros, path)):
        return np.zeros(shape, np.float32)
    if leaf in ("scale", "layer_scale1", "layer_scale2"):
        return np.ones(shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    std = math.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.02
    return (std * rng.standard_normal(shape)).astype(np.float32)
