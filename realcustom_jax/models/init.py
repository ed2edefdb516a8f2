"""Initial parameters, without compiling `model.init`.

XLA needs a minute on CPUs to compile an initialiser with hundreds of random draws. So shapes come from
`jax.eval_shape`, and values from numpy. Each parameter has its own generator, seeded by its path: its value
depends neither on devices nor on other parameters.
"""

import functools
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax.models.layers import SHAPES


def param_shapes(module: nn.Module, *args: Any, method: Callable[..., Any] | str | None = None) -> Any:
    """`params` tree of shapes and dtypes of a module; allocates no arrays.

    Args:
      module: hashable, so its sequences are tuples.
      *args: arguments of the call, as arrays or their shapes.
      method: the method to call, as for `module.init`. The cache compares functions by identity.

    Raises:
      TypeError: for a module that is not hashable.
    """
    # Tracing a UNet takes seconds, so equal calls of equal modules are traced once.
    leaves, structure = jax.tree.flatten(args)
    leaves = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    # a copy, so that a caller can change its tree
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(module, structure, leaves, method))


@functools.lru_cache(maxsize=64)  # enough for the components of several models
def _traced_shapes(module: nn.Module, structure: Any, leaves: tuple[Any, ...], method: Any) -> Any:
    def init(*args: Any) -> Any:
        key = jax.random.key(0)
        return module.init({"params": key, SHAPES: key}, *args, method=method)

    return jax.eval_shape(init, *jax.tree.unflatten(structure, leaves))["params"]


def init_params(shapes: Any, seed: int, zeros: str | None = None) -> Any:
    """Initial numpy parameters for a tree of shapes; the name of a leaf decides its distribution.

    Kernels are normal with variance 1/fan_in. Embeddings and tokens are normal with standard deviation 0.02.
    Scales are 1, biases 0.

    Args:
      shapes: nested dict whose leaves have `.shape`.
      seed: seed of the whole tree.
      zeros: a regex, or None. Parameters whose path ("a/b/kernel") contains a match are 0. Zero output layers
        of added parts leave the base model unchanged at the start.
    """
    flat: dict[str, Any] = flatten_dict(shapes, sep="/")
    values = {path: _initial(path, leaf.shape, seed, zeros) for path, leaf in flat.items()}
    return unflatten_dict(values, sep="/")


def _initial(path: str, shape: tuple[int, ...], seed: int, zeros: str | None) -> np.ndarray:
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "bias" or (zeros and re.search(zeros, path)):
        return np.zeros(shape, np.float32)
    if leaf in ("scale", "layer_scale1", "layer_scale2"):
        return np.ones(shape, np.float32)
    # crc32 instead of `hash`, which Python salts in each process
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    # fan_in is the product of all axes but the last: kernels are (height, width, C_in, C_out)
    std = math.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.02
    return (std * rng.standard_normal(shape)).astype(np.float32)
