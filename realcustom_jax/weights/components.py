"""One component of a model folder: its `config.json` and its weights, in any layout that is known."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from realcustom_jax.errors import UserError
from realcustom_jax.files import read_json, write_text
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

# What weights can be written as.
WEIGHT_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# Which layouts a component may come in; the one that shares most names with the file is taken.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "unet": (DIFFUSERS, FLAX),
    "vae": (DIFFUSERS, OLD_VAE, FLAX),
    "text_encoder": (DIFFUSERS, FLAX),
    "image_encoder": (CLIP_VISION, DINOV2, TIMM, FLAX_VISION),
    "realcustom": (DIFFUSERS,),
}

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "diffusion_flax_model", "flax_model")
# In order of preference: whole before shards, full precision before half, what needs no PyTorch first.
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
    """Parameters as numpy arrays."""
    return lambda path, value: value.astype(dtype, copy=False)


def on_device(dtype: Any, sharding: Any = None) -> Place:
    """Parameters as JAX arrays, one after the other, so that no more than one is there twice.

    Args:
      dtype: of the parameters, or a function of a path that gives it.
      sharding: where they go: a `jax.sharding.Sharding` for all, a function of a path and a shape that gives
        one, or None for the default device. Each device gets its own shards only.
    """

    def place(path: str, value: np.ndarray) -> jax.Array:
        value = value.astype(dtype(path) if _chooses(dtype) else dtype, copy=False)
        target = sharding(path, value.shape) if callable(sharding) else sharding
        if target is None:
            return jax.block_until_ready(jax.device_put(value))
        return jax.block_until_ready(
            jax.make_array_from_callback(value.shape, target, lambda index: value[index])
        )

    return place


def _chooses(dtype: Any) -> bool:
    """Whether it is a function that gives a dtype, and no dtype; NumPy's and JAX's can be called, too."""
    return callable(dtype) and not isinstance(dtype, (type, np.dtype)) and not hasattr(dtype, "dtype")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """`config.json` of a component, or its file called `name`.

    Raises:
      UserError: if it is not there or is not JSON.
    """
    return read_json(folder / name)


def find_weights(folder: Path) -> Path:
    """The weights file of a component's folder, by the names that diffusers, transformers and timm use.

    Raises:
      UserError: when there is none.
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
    """The parameters of one component's folder, checked key by key; see `read_params`."""
    return read_params(open_tensors(find_weights(folder)), LAYOUTS[component], shapes, place)


def read_params(tensors: Tensors, layouts: Sequence[Layout], shapes: Any, place: Place) -> Any:
    """As `open_params`, with every parameter read and put where `place` says."""
    return place_params(open_params(tensors, layouts, shapes), place)


@contextlib.contextmanager
def misfits(source: str) -> Iterator[None]:
    """Turns what Flax and JAX raise for sizes that do not fit each other into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source} makes no network: {reason}") from None


def open_params(tensors: Tensors, layouts: Sequence[Layout], shapes: Any) -> Any:
    """Parameters from tensors, checked name by name, and read when they are used.

    Args:
      tensors: of a file.
      layouts: that it may have.
      shapes: the `params` tree that the module wants, as shapes.

    Returns:
      a nested dict of `LazyArray`s, in the file's dtype.

    Raises:
      UserError: when names or shapes differ (see `check_keys`); and a parameter, when it is read, for a
        tensor whose values are not floating point.
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
    return unflatten({path: params[path] for path in flat})


def _reader(tensors: Tensors, entry: Entry, path: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        value = tensors.read(entry.key)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{tensors.source}: {entry.key} is {value.dtype}, weights must be floating point")
        return entry.from_file(value)[path]

    return read


def _fitting(tensors: Tensors, layouts: Sequence[Layout], flat: Mapping[str, Any]) -> tuple[Layout, list]:
    """The layout, and its entries, that shares most names with the file; of equals the first."""
    candidates = [(layout, layout.entries(flat)) for layout in layouts]
    return max(candidates, key=lambda pair: sum(entry.key in tensors.shapes for entry in pair[1]))


def write_params(path: Path, layout: Layout, params: Any, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write parameters in a layout; the inverse of `read_params`.

    Args:
      path: of the file, which its ending gives the kind of; see `write_tensors`.
      layout: of its tensors.
      params: nested dict of arrays: numpy's, JAX's, or lazy ones.
      dtype: one of `WEIGHT_DTYPES`.
      shard_bytes: size above which `.safetensors` are written in shards.
    """
    write_tensors(path, to_tensors(layout, params, dtype), shard_bytes)


def to_tensors(layout: Layout, params: Any, dtype: str, prefix: str = "") -> dict[str, LazyArray]:
    """What `write_params` writes, every name after the prefix; made when it is read."""
    flat, target = flatten(params), np.dtype(WEIGHT_DTYPES[dtype])

    def reader(entry: Entry) -> Callable[[], np.ndarray]:
        return lambda: entry.to_file(np.asarray(flat[path]).astype(target) for path in entry.paths)

    return {prefix + e.key: LazyArray(e.shape, reader(e), target) for e in layout.entries(flat)}


def check_dtype(dtype: str) -> None:
    """Raises `UserError` for a name that is not one of `WEIGHT_DTYPES`."""
    if dtype not in WEIGHT_DTYPES:
        raise UserError(f"weights cannot be written as {dtype!r}; known: {', '.join(WEIGHT_DTYPES)}")


def weights_name(component: str) -> str:
    """What diffusers and transformers call the weights file of a component."""
    stem = "model" if component.startswith(("text_", "image_")) else "diffusion_pytorch_model"
    return f"{stem}.safetensors"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A component's JSON, in the form of diffusers and transformers.

    Raises:
      UserError: it cannot be written.
    """
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
