"""Conversion between Flax parameter paths and PyTorch state-dict keys, with their array layouts.

Our modules have the names of diffusers and transformers, so one rule is enough: list indices change from `_0`
to `.0`; `kernel`, `scale` and `embedding` become `weight`; kernels are transposed.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.added import ADDED

# In diffusers' time embeddings, `linear_1` is a name instead of an entry of a list.
_LIST_INDEX = re.compile(r"(?<!linear)_(\d+)$")
# PyTorch calls the main array of every layer `weight`; Flax has a name for each kind of layer.
_WEIGHT_LEAVES = ("kernel", "scale", "embedding")


def torch_key(path: str) -> str:
    """PyTorch key of a path: `down_blocks_0/attn/to_out_0/kernel` → `down_blocks.0.attn.to_out.0.weight`."""
    *modules, leaf = path.split("/")
    names = [_LIST_INDEX.sub(r".\1", name) for name in modules]
    return ".".join([*names, "weight" if leaf in _WEIGHT_LEAVES else leaf])


def to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Convert an array to PyTorch's layout: kernels (in, out) → (out, in), HWIO → OIHW; others unchanged."""
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
    # Strips fit into the processor's cache: two to three times as fast as numpy's own transposed copy.
    result = np.empty(value.shape[::-1], value.dtype)
    for start in range(0, len(value), _STRIP):
        result[:, start : start + _STRIP] = value[start : start + _STRIP].T
    return result


_STRIP = 64  # rows
# {number of dimensions: axes}: dense kernels (in, out) ↔ (out, in), convolutions HWIO ↔ OIHW.
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a parameter in PyTorch's layout."""
    if not path.endswith("/kernel"):
        return tuple(shape)
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])


def flatten(params: Any) -> dict[str, Any]:
    """Flatten a nested dict to {"a/b/kernel": leaf}."""
    return flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`."""
    return unflatten_dict(dict(flat), sep="/")


@contextlib.contextmanager
def explain_shape_errors(source: str) -> Iterator[None]:
    """Context in which a config is derived from tensors' shapes: errors of that become one `UserError`.

    Raises:
      UserError: a tensor is missing (`KeyError` within), or has another rank or size than known models.
    """
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{source} is incomplete: it has no {error.args[0]}") from None
    except (IndexError, TypeError, ValueError, StopIteration) as error:
        reason = f": {error}" if str(error) else ""
        raise UserError(f"{source} has tensors of unknown shapes{reason}") from None


def check_keys(
    source: str, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a file has exactly the keys and shapes that the model needs.

    Args:
      source: the file's name, for the message.
      expected, actual: {key: shape} of the model and of the file.

    Raises:
      UserError: some differ. It lists missing, unexpected and mis-shaped keys: their count and the first 20.
    """
    # Never "strict=False": a weight that is silently left out gives images that are only slightly wrong.
    missing = sorted(expected.keys() - actual.keys())
    unexpected = sorted(actual.keys() - expected.keys())
    misshaped = [
        f"{key} (model {tuple(expected[key])}, file {tuple(actual[key])})"
        for key in sorted(expected.keys() & actual.keys())
        if tuple(expected[key]) != tuple(actual[key])
    ]
    parts = [
        f"{len(keys)} {kind}: {_some(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if keys
    ]
    if parts:
        raise UserError(f"{source} does not fit the model: " + "; ".join(parts))


def _some(keys: Iterable[str], limit: int = 20) -> str:
    """The first keys, and the number of the others: a wrong file can differ in thousands of keys."""
    keys = list(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def split_added(unet: Any) -> tuple[Any, Any]:
    """Split the parameters (or shapes) of a UNet into (base model, added by RealCustom)."""
    flat = flatten(unet)
    added = {path: value for path, value in flat.items() if re.search(ADDED, path)}
    return unflatten({path: value for path, value in flat.items() if path not in added}), unflatten(added)


def join_added(base: Any, added: Any) -> Any:
    """Join base and added parameters; the inverse of `split_added`."""
    return unflatten({**flatten(base), **flatten(added)})
