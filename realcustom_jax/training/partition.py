"""The device mesh, how parameters are laid out on it, and which of them train."""

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
BATCH = PartitionSpec(("data", "fsdp"))

Rules = Sequence[tuple[str, Sequence[str | None]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The config's `mesh`: devices along each of its axes, -1 for all that the others leave."""

    data: int = option(-1, "devices that divide the batch", int, low=-1, high=LAST_STEP)
    fsdp: int = option(1, "devices that divide batch and parameters", int, low=-1, high=LAST_STEP)
    tensor: int = option(1, "devices that divide heads and channels", int, low=-1, high=LAST_STEP)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `devices`, all by default; one of the sizes may be -1, for all that the others leave.

    Devices are laid out so that the last axes, which talk most, are next to each other in a TPU's network;
    several slices, which only the data centre's network joins, divide the "data" axis.

    Raises:
      UserError: when the sizes do not multiply to the number of devices, or the slices do not divide "data".
    """
    sizes = [data, fsdp, tensor]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // max(math.prod(size for size in sizes if size != -1), 1)
    if math.prod(sizes) != count or min(sizes) < 1:
        wanted = dict(zip(AXES, (data, fsdp, tensor), strict=True))
        raise UserError(f"a mesh of {wanted} does not fit {count} devices")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(f"{slices} slices do not divide the mesh's data axis of {sizes[0]}")
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        return Mesh(mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices), AXES)
    return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises `UserError` when a batch cannot be divided among the devices, in all its parts."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (shards * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(f"batch_size {batch_size} cannot be divided among {shards} devices{parts}")


def sharding(path: str, shape: Sequence[int], rules: Rules, mesh: Mesh) -> NamedSharding:
    """Of an array, by the first rule whose regex finds its path.

    A rule names a mesh axis (or None) for each of the *last* dimensions of an array; earlier dimensions, and
    those that the axis does not divide, are not split.

    Raises:
      UserError: when no rule finds the path (end the rules with (".*", ()) to replicate the rest).
    """
    axes = next((axes for regex, axes in rules if re.search(regex, path)), None)
    if axes is None:
        raise UserError(f"no sharding rule matches parameter {path}")
    axes = tuple(axes)[-len(shape) :] if shape else ()
    first = len(shape) - len(axes)
    fitting = [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape[first:], strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*[None] * first, *fitting))


def with_shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """Arrays or shapes → `jax.ShapeDtypeStruct`s with the shardings of the rules."""

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(name, leaf.shape, rules, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def gather_tables(params: Any, mesh: Mesh) -> Any:
    """The same parameters, token embeddings whole on every device; for use within a jitted function.

    Rows that are looked up in a table divided by channels are divided by channels, and the whole text encoder
    after them would be: on each device a part of the channels of all the batch, joined by an all-reduce after
    every layer, whose size grows with the batch. From whole tables the batch stays divided.
    """

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        if not jax.tree_util.keystr(path, simple=True, separator="/").endswith("token_embedding/embedding"):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(one, params)


def placer(trainable: Sequence[str], frozen_dtype: Any, rules: Rules, mesh: Mesh) -> Place:
    """Puts host arrays, the same in every process, into their shards; a device gets only its own.

    Parameters that train are float32, the others of `frozen_dtype`.
    """

    def place(path: str, value: np.ndarray) -> jax.Array:
        trains = any(re.search(regex, path) for regex in trainable)
        value = value.astype(np.float32 if trains else frozen_dtype, copy=False)
        target = sharding(path, value.shape, rules, mesh)
        return jax.make_array_from_callback(value.shape, target, lambda index: value[index])

    return place


def to_host(tree: Any) -> Any:
    """Global arrays whole, as numpy, in every process: all of them must call it.

    Arrays are gathered one after the other, so that devices have room for one whole array and not for all.
    """
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)


def split_trainable(params: Any, trainable: Sequence[str], frozen: Sequence[str]) -> tuple[Any, Any]:
    """Two trees, of the parameters that train and of those that do not, by regexes over their paths.

    Args:
      params: nested dict.
      trainable, frozen: regexes, searched in "component/module/…/kernel". Where both match, `trainable` wins.

    Raises:
      UserError: when a parameter is matched by neither, or a regex matches nothing: a misspelt regex must not
        silently freeze a layer or train one.
    """
    flat = flatten(params)
    for regex in [*trainable, *frozen]:
        if not any(re.search(regex, path) for path in flat):
            raise UserError(f"the parameter regex {regex!r} matches no parameter")
    trained, held = {}, {}
    for path, value in flat.items():
        if any(re.search(regex, path) for regex in trainable):
            trained[path] = value
        elif any(re.search(regex, path) for regex in frozen):
            held[path] = value
        else:
            raise UserError(f"parameter {path} is matched by neither the trainable nor the frozen regexes")
    return unflatten(trained), unflatten(held)


def merge(*trees: Any) -> Any:
    """The inverse of `split_trainable`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= flatten(tree)
    return unflatten(flat)
