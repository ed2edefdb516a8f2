"""Names: a Flax parameter path and shape ↔ the PyTorch state-dict key and shape.

Our modules are named after diffusers' and transformers', so one rule does it: list indices move from `_0` to
`.0`, `kernel`, `scale` and `embedding` are called `weight`, and kernels are transposed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.added import ADDED

# `linear_1` is a name of its own in diffusers' time embeddings, not an entry of a list.
_LIST_INDEX = re.compile(r"(?<!linear)_(\d+)$")
_WEIGHT_LEAVES = ("kernel", "scale", "embedding")


def torch_key(path: str) -> str:
    """`down_blocks_0/attn/to_out_0/kernel` → `down_blocks.0.attn.to_out.0.weight`."""
    *modules, leaf = path.split("/")
    names = [_LIST_INDEX.sub(r".\1", name) for name in modules]
    return ".".join([*names, "weight" if leaf in _WEIGHT_LEAVES else leaf])


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """A Flax value in PyTorch's layout: (in, out) → (out, in) and HWIO → OIHW for kernels, else as it is."""
    if not path.endswith("/kernel"):
        return value
    return _transposed(value, _TO_TORCH[value.ndim])


def from_torch(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    if not path.endswith("/kernel"):
        return value
    return _transposed(value, _FROM_TORCH[value.ndim])


def _transposed(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    if axes != (1, 0):
        return np.ascontiguousarray(value.transpose(axes))
    # In strips that stay in the processor's cache: two to three times as fast as numpy's own copy.
    result = np.empty(value.shape[::-1], value.dtype)
    for start in range(0, len(value), _STRIP):
        result[:, start : start + _STRIP] = value[start : start + _STRIP].T
    return result


_STRIP = 64
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not path.endswith("/kernel"):
        return tuple(shape)
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])


def flatten(params: Any) -> dict[str, Any]:
    """Nested dict → {"a/b/kernel": leaf}."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Any:
    return flax.traverse_util.unflatten_dict(dict(flat), sep="/")


def check_keys(
    source: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare names and shapes; say the differences and raise.

    Args:
      source: where the weights come from, for the message.
      wanted, found: {key: shape}, of the model and of the file.

    Raises:
      UserError: with the missing, the unexpected and the mis-shaped keys, each kind counted and its first 20
        named.
    """
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    misshaped = [
        f"{key} (model {tuple(wanted[key])}, file {tuple(found[key])})"
        for key in sorted(wanted.keys() & found.keys())
        if tuple(wanted[key]) != tuple(found[key])
    ]
    parts = [
        f"{len(keys)} {kind}: {_some(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if keys
    ]
    if parts:
        raise UserError(f"{source} does not fit the model: " + "; ".join(parts))


def _some(keys: Iterable[str], limit: int = 20) -> str:
    keys = list(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def split_added(unet: Any) -> tuple[Any, Any]:
    """A UNet's parameters (or shapes) as those of the base model and those that RealCustom adds."""
    flat = flatten(unet)
    added = {path: value for path, value in flat.items() if re.search(ADDED, path)}
    return unflatten({path: value for path, value in flat.items() if path not in added}), unflatten(added)


def join_added(base: Any, added: Any) -> Any:
    """The inverse of `split_added`."""
    return unflatten({**flatten(base), **flatten(added)})
