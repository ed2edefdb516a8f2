"""The device mesh, the sharding of parameters, and the split into trainable and frozen parameters."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import LAST_STEP, option
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.lazy import Place

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # devices along "tensor" share the examples of a batch

# (regex over parameter paths, mesh axis of each of the last dimensions)
Rules = Sequence[tuple[str, Sequence[str | None]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The config's `mesh` section: number of devices along each axis. One axis may be -1: all that remain."""

    data: int = option(-1, "devices that split the batch", int, low=-1, high=LAST_STEP)
    fsdp: int = option(1, "devices that split the batch and the parameters", int, low=-1, high=LAST_STEP)
    tensor: int = option(1, "devices that split heads and channels", int, low=-1, high=LAST_STEP)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh of `devices` (default: all). One of the sizes may be -1: all devices that remain.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the slices do not divide "data".
    """
    sizes = [data, fsdp, tensor]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // max(math.prod(size for size in sizes if size != -1), 1)
    if math.prod(sizes) != count or min(sizes) < 1:
        requested = dict(zip(AXES, (data, fsdp, tensor), strict=True))
        raise UserError(f"a mesh of {requested} does not fit {count} devices")
    # Only the data-centre network joins TPU slices, so only the "data" axis, which communicates least, may
    # span them.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(f"{slices} slices do not divide the mesh's data axis of {sizes[0]}")
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        return Mesh(mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices), AXES)
    # `create_device_mesh` makes the last axes, which communicate most, neighbours in the TPU network.
    return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raise `UserError` if a batch cannot be divided among the devices and its accumulation steps."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(f"batch_size {batch_size} cannot be divided among {shards} devices{parts}")


def sharding(path: str, shape: Sequence[int], rules: Rules, mesh: Mesh) -> NamedSharding:
    """Sharding of an array, by the first rule whose regex matches its path.

    A rule names a mesh axis (or None) for each of the *last* dimensions of an array. Earlier dimensions are
    not split.

    Raises:
      UserError: no rule matches the path (end the rules with (".*", ()) to replicate the rest).
    """
    axes = next((axes for regex, axes in rules if re.search(regex, path)), None)
    if axes is None:
        raise UserError(f"no sharding rule matches parameter {path}")
    axes = tuple(axes)[-len(shape) :] if shape else ()  # a bias has fewer dimensions than the rule names
    first = len(shape) - len(axes)
    # jit needs equal shards, so a dimension that the axis does not divide stays whole.
    fitting = [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape[first:], strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*[None] * first, *fitting))


def with_shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Convert a tree of arrays or shapes to `jax.ShapeDtypeStruct`s with the shardings of the rules."""

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(name, leaf.shape, rules, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def gather_tables(params: Any, mesh: Mesh) -> Any:
    """The same parameters with token embeddings replicated; for use within a jitted function."""

    # Rows from a table that is split by channels are split by channels. XLA would keep that split through
    # the whole text encoder: each device computes some channels of the whole batch, with an all-reduce after
    # every layer whose size grows with the batch. With a whole table the batch stays split.
    def one(path: Any, leaf: jax.Array) -> jax.Array:
        if not jax.tree_util.keystr(path, simple=True, separator="/").endswith("token_embedding/embedding"):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(one, params)


def placer(trainable: Sequence[str], frozen_dtype: Any, rules: Rules, mesh: Mesh) -> Place:
    """Make a function (path, host array) → array in its shards.

    Trainable parameters become float32, frozen ones `frozen_dtype`. All processes must pass the same values.
    """

    # From a callback each device receives only its own shard, and no whole copy is made first.
    def place(path: str, value: np.ndarray) -> jax.Array:
        trains = any(re.search(regex, path) for regex in trainable)
        value = value.astype(np.float32 if trains else frozen_dtype, copy=False)
        target = sharding(path, value.shape, rules, mesh)
        return jax.make_array_from_callback(value.shape, target, lambda index: value[index])

    return place


def to_host(tree: Any) -> Any:
    """Gather global arrays as numpy arrays, in every process. All processes must call it."""
    # One array after the other: devices have memory for one whole array, not for the whole tree.
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)


def split_trainable(params: Any, trainable: Sequence[str], frozen: Sequence[str]) -> tuple[Any, Any]:
    """Split parameters into (trainable, frozen) trees, by regexes over their paths.

    Args:
      params: nested dict.
      trainable, frozen: regexes, searched in "component/module/…/kernel". If both match, `trainable` wins.

    Raises:
      UserError: neither list matches a parameter, or a regex matches nothing.
    """
    flat = flatten(params)
    # A misspelt regex must not silently freeze or train a layer.
    for regex in [*trainable, *frozen]:
        if not any(re.search(regex, path) for path in flat):
            raise UserError(f"the parameter regex {regex!r} matches no parameter")
    train, freeze = {}, {}
    for path, value in flat.items():
        if any(re.search(regex, path) for regex in trainable):
            train[path] = value
        elif any(re.search(regex, path) for regex in frozen):
            freeze[path] = value
        else:
            raise UserError(f"parameter {path} is matched by neither the trainable nor the frozen regexes")
    return unflatten(train), unflatten(freeze)


def merge(*trees: Any) -> Any:
    """Merge parameter trees; the inverse of `split_trainable`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= flatten(tree)
    return unflatten(flat)
