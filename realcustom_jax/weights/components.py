"""One component of a model folder: its `config.json` and its weights, in any known layout."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import read_json
from realcustom_jax.weights.keys import check_keys, flatten, unflatten
from realcustom_jax.weights.layouts import (
    CLIP_VISION,
    DIFFUSERS,
    DINOV2,
    FLAX,
    FLAX_VISION,
    OLD_VAE,
    TIMM,
    Entry,
    Layout,
)
from realcustom_jax.weights.lazy import LazyArray, Place, place_params
from realcustom_jax.weights.tensors import SHARD_BYTES, Tensors, open_tensors, write_tensors

# Dtypes that weights can be written in.
WEIGHT_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# {component: its possible layouts}; the one that shares most keys with the file is used.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "unet": (DIFFUSERS, FLAX),
    "vae": (DIFFUSERS, OLD_VAE, FLAX),
    "text_encoder": (DIFFUSERS, FLAX),
    "image_encoder": (CLIP_VISION, DINOV2, TIMM, FLAX_VISION),
    "realcustom": (DIFFUSERS,),
}

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "diffusion_flax_model", "flax_model")
# In order of preference: formats without PyTorch first, full precision before half, one file before shards.
_ENDINGS = (
    ".safetensors",
    ".safetensors.index.json",
    ".fp16.safetensors",
    ".fp16.safetensors.index.json",
    ".safetensors.index.fp16.json",
    ".bf16.safetensors",
    ".msgpack",
    ".bin",
    ".bin.index.json",
)


def on_host(dtype: Any) -> Place:
    """A `Place` that makes numpy arrays of `dtype`."""
    return lambda path, value: cast(value, dtype)


def on_device(dtype: Any, sharding: Any = None) -> Place:
    """A `Place` that makes JAX arrays.

    Args:
      dtype: dtype of the parameters, or a function path → dtype.
      sharding: a `jax.sharding.Sharding` for all parameters, a function (path, shape) → sharding, or None for
        the default device. Each device gets its own shards only.
    """

    # Waiting for each transfer keeps host copies short-lived: only a few parameters exist twice at a time.
    def place(path: str, value: np.ndarray) -> jax.Array:
        value = cast(value, dtype(path) if _is_dtype_function(dtype) else dtype)
        target: Any = sharding(path, value.shape) if callable(sharding) else sharding
        if target is None:
            return jax.block_until_ready(jax.device_put(value))
        return jax.block_until_ready(
            jax.make_array_from_callback(value.shape, target, lambda index: value[index])
        )

    return place


def cast(value: np.ndarray, dtype: Any) -> np.ndarray:
    """`value.astype(dtype, copy=False)`, in a way that lets several threads cast float16 to bfloat16."""
    if value.dtype != np.float16 or np.dtype(dtype) != ml_dtypes.bfloat16 or value.size < 2:
        return value.astype(dtype, copy=False)
    # The direct cast holds Python's lock most of the time, so threads wait for each other. A cast through
    # float32 is exact, and they do not wait. In parts, so that these numbers stay in the processor's cache.
    result = np.empty_like(value, dtype)
    axis = int(np.argmax(value.strides))  # parts along this axis are contiguous
    rows = max(1, _CAST_NUMBERS * value.shape[axis] // value.size)
    source, target = np.moveaxis(value, axis, 0), np.moveaxis(result, axis, 0)
    for start in range(0, len(source), rows):
        target[start : start + rows] = source[start : start + rows].astype(np.float32)
    return result


# Numbers that `cast` converts at a time: 1 MiB of float32.
_CAST_NUMBERS = 2**18


def _is_dtype_function(dtype: Any) -> bool:
    """Whether `dtype` is a function path → dtype. Dtypes of NumPy and JAX are callable too."""
    return callable(dtype) and not isinstance(dtype, (type, np.dtype)) and not hasattr(dtype, "dtype")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read `config.json` of a component, or another JSON file of its folder.

    Raises:
      UserError: the file is missing or is not JSON.
    """
    return read_json(folder / name)


def find_weights(folder: Path) -> Path:
    """Find the weights file of a component's folder, by the file names of diffusers, transformers and timm.

    Raises:
      UserError: the folder has none.
    """
    for ending in _ENDINGS:
        for stem in _STEMS:
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    raise UserError(
        f"{folder} has no weights: expected diffusion_pytorch_model.safetensors or model.safetensors, or "
        "one of their other forms (.safetensors.index.json, .fp16.safetensors, .msgpack, .bin)"
    )


def load_params(folder: Path, component: str, shapes: Any, place: Place) -> Any:
    """Load the parameters of a component's folder; see `read_params`."""
    return read_params(open_tensors(find_weights(folder)), LAYOUTS[component], shapes, place)


def read_params(tensors: Tensors, layouts: Sequence[Layout], shapes: Any, place: Place) -> Any:
    """`open_params` with every parameter read, and placed by `place`."""
    return place_params(open_params(tensors, layouts, shapes), place)


@contextlib.contextmanager
def misfits(source: str) -> Iterator[None]:
    """Turn the errors that Flax and JAX raise for incompatible sizes into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Flax and JAX raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source} makes no network: {reason}") from None


def open_params(tensors: Tensors, layouts: Sequence[Layout], shapes: Any) -> Any:
    """Open lazy parameters from a file's tensors, after checking all keys and shapes.

    Args:
      tensors: tensors of a file.
      layouts: layouts that the file may have.
      shapes: shapes of the module's `params` tree.

    Returns:
      a nested dict of `LazyArray`s, in the file's dtype.

    Raises:
      UserError: keys or shapes differ (see `check_keys`). Reading a parameter raises it too if its tensor is
        not floating point.
    """
    flat = flatten(shapes)
    layout, entries = _fitting(tensors, layouts, flat)
    found = {key: shape for key, shape in tensors.shapes.items() if not re.search(layout.unused, key)}
    source = f"{tensors.source}, named as {layout.name} does,"
    check_keys(source, {entry.key: entry.shape for entry in entries}, found)
    params = {}
    for entry in entries:
        for path in entry.paths:
            params[path] = LazyArray(tuple(flat[path].shape), _reader(tensors, entry, path))
    # In the module's order, whatever the layout's.
    return unflatten({path: params[path] for path in flat})


def _reader(tensors: Tensors, entry: Entry, path: str) -> Callable[[], np.ndarray]:
    """Function that reads one parameter."""

    def read() -> np.ndarray:
        value = tensors.read(entry.key)
        # Quantised checkpoints have integers, which would be silently wrong as weights.
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{tensors.source}: {entry.key} is {value.dtype}, weights must be floating point")
        return entry.from_file(value)[path]

    return read


def _fitting(tensors: Tensors, layouts: Sequence[Layout], flat: Mapping[str, Any]) -> tuple[Layout, list]:
    """The layout that shares most keys with the file, and its entries. The first wins a tie."""
    # The closest layout, even if it does not fit: its list of missing keys is the most useful error.
    candidates = [(layout, layout.entries(flat)) for layout in layouts]
    return max(candidates, key=lambda pair: sum(entry.key in tensors.shapes for entry in pair[1]))


def write_params(path: Path, layout: Layout, params: Any, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write parameters to a file; the inverse of `read_params`.

    Args:
      path: the file. Its extension gives the format; see `write_tensors`.
      layout: layout of its tensors.
      params: nested dict of numpy, JAX or lazy arrays.
      dtype: one of `WEIGHT_DTYPES`.
      shard_bytes: size in bytes above which `.safetensors` are written as shards.
    """
    write_tensors(path, to_tensors(layout, params, dtype), shard_bytes)


def to_tensors(layout: Layout, params: Any, dtype: str, prefix: str = "") -> dict[str, LazyArray]:
    """Lazy tensors of a layout, {prefix + key: tensor}. They are cast and joined when they are read."""
    flat, target = flatten(params), np.dtype(WEIGHT_DTYPES[dtype])

    def reader(entry: Entry) -> Callable[[], np.ndarray]:
        return lambda: entry.to_file(np.asarray(flat[path]).astype(target) for path in entry.paths)

    return {prefix + e.key: LazyArray(e.shape, reader(e), target) for e in layout.entries(flat)}


def check_dtype(dtype: str) -> None:
    """Raise `UserError` if the name is not one of `WEIGHT_DTYPES`."""
    if dtype not in WEIGHT_DTYPES:
        raise UserError(f"weights cannot be written as {dtype!r}; known: {', '.join(WEIGHT_DTYPES)}")


def weights_name(component: str) -> str:
    """File name of a component's weights in diffusers and transformers."""
    stem = "model" if component.startswith(("text_", "image_")) else "diffusion_pytorch_model"
    return f"{stem}.safetensors"
