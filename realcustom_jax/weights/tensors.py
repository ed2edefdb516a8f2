"""Files of named tensors, read one by one: safetensors (whole or in shards), Flax msgpack, pickles.

A tensor is read from disk when it is asked for and nothing else of its file stays in memory, so that loading
a model needs little more than the model.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import safetensors
import safetensors.numpy

from realcustom_jax.errors import UserError
from realcustom_jax.weights.keys import unflatten

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
SHARD_BYTES = 5 * 10**9  # as transformers; diffusers allows 10 GB
_EXTENSION_NDARRAY = 1  # flax.serialization's code of an array


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Named tensors on disk.

    Attributes:
      source: where they come from, for messages.
      shapes: of all of them.
      read: one tensor as numpy, in the file's dtype.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    def select(self, prefix: str) -> "Tensors":
        """Those whose name begins with `prefix`, without it."""
        shapes = {key[len(prefix) :]: shape for key, shape in self.shapes.items() if key.startswith(prefix)}
        return dataclasses.replace(self, shapes=shapes, read=lambda key: self.read(prefix + key))


def open_tensors(path: Path) -> Tensors:
    """A file of tensors, by its ending; `….index.json` names the shards of several.

    Raises:
      UserError: for a missing, damaged or unknown kind of file, or a pickle without PyTorch.
    """
    if not path.is_file():
        raise UserError(f"the weights file {str(path)!r} does not exist")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix == ".msgpack":
        return _open_msgpack(path)
    if path.suffix in PICKLES:
        return _open_pickle(path)
    known = ", ".join((".safetensors", ".safetensors.index.json", ".msgpack", *PICKLES))
    raise UserError(f"{path} is no kind of weights file that is known: {known}")


def _open_safetensors(path: Path) -> Tensors:
    def opened() -> safetensors.safe_open:
        try:
            return safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from None

    with opened() as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}

    def read(key: str) -> np.ndarray:
        # Opened anew each time: the file is mapped into memory, where what was read stays until it is closed.
        with opened() as file:
            return file.get_tensor(key)

    return Tensors(str(path), shapes, read)


def _open_shards(path: Path) -> Tensors:
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of shards: {error!r}") from None
    shards = {name: open_tensors(path.parent / name) for name in sorted(set(weight_map.values()))}
    shapes = {key: shape for shard in shards.values() for key, shape in shard.shapes.items()}
    if shapes.keys() != weight_map.keys():
        differing = sorted(shapes.keys() ^ weight_map.keys())
        raise UserError(f"{path} does not name what its shards hold: {', '.join(differing[:20])}")
    return Tensors(str(path), shapes, lambda key: shards[weight_map[key]].read(key))


def _open_msgpack(path: Path) -> Tensors:
    """Flax's format: nested maps with arrays as extensions. Only where each array's bytes lie is kept."""
    places: dict[str, tuple[tuple[int, ...], np.dtype, int]] = {}
    try:
        with open(path, "rb") as file:
            unpacker = msgpack.Unpacker(file, ext_hook=_array_header, raw=False, max_buffer_size=2**31 - 1)
            for names, (shape, dtype, size) in _msgpack_leaves(unpacker, ()):
                # The array's bytes are the last thing in its record.
                places["/".join(names)] = (shape, dtype, unpacker.tell() - size)
    except (msgpack.UnpackException, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a whole Flax msgpack file: {error!r}") from None

    def read(key: str) -> np.ndarray:
        shape, dtype, offset = places[key]
        count = int(np.prod(shape, dtype=np.int64))
        return np.fromfile(path, dtype, count, offset=offset).reshape(shape)

    return Tensors(str(path), {key: place[0] for key, place in places.items()}, read)


def _array_header(code: int, data: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    if code != _EXTENSION_NDARRAY:
        raise ValueError(f"extension type {code}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    name = dtype.decode()
    return tuple(shape), np.dtype(getattr(ml_dtypes, name, name)), len(buffer)


def _msgpack_leaves(
    unpacker: msgpack.Unpacker, names: tuple[str, ...], entries: int | None = None
) -> Iterator:
    """(names, header) of every array below a map whose header says that it has so many `entries`."""
    for _ in range(unpacker.read_map_header() if entries is None else entries):
        inner = (*names, unpacker.unpack())
        try:
            below = unpacker.read_map_header()
        except ValueError:  # no map: the unpacker has not moved
            yield inner, unpacker.unpack()
        else:
            yield from _msgpack_leaves(unpacker, inner, below)


def _open_pickle(path: Path) -> Tensors:
    torch = _torch(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged or an unsafe pickle
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} holds more than plain PyTorch weights, which is not safe to read ({reason}): take its "
            ".safetensors form"
        ) from None
    for name in ("state_dict", "module", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise UserError(f"{path} holds no state dict: names and tensors were expected")

    def read(key: str) -> np.ndarray:
        value = state[key].contiguous()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    return Tensors(str(path), {key: tuple(value.shape) for key, value in state.items()}, read)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int = SHARD_BYTES) -> None:
    """Write a file of tensors, its kind by the ending; `.safetensors` larger than `shard_bytes` in shards.

    Raises:
      UserError: for a kind that cannot be written, a pickle without PyTorch, or a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".safetensors":
            _write_safetensors(path, tensors, shard_bytes)
        elif path.suffix == ".msgpack":
            path.write_bytes(flax.serialization.msgpack_serialize(unflatten(tensors)))
        elif path.suffix in PICKLES:
            _write_pickle(path, tensors)
        else:
            raise UserError(
                f"weights cannot be written as {path.name}: .safetensors, .msgpack, .pth are known"
            )
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    metadata = {"format": "pt"}  # transformers refuses files that do not say so
    if len(shards) == 1:
        safetensors.numpy.save_file(shards[0], path, metadata=metadata)
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"{path.stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        safetensors.numpy.save_file(shard, path.with_name(name), metadata=metadata)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": weight_map}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_pickle(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    torch = _torch(path)

    def convert(value: np.ndarray) -> Any:
        value = np.require(value, requirements="C")
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    torch.save({key: convert(value) for key, value in tensors.items()}, path)


def _torch(path: Path) -> Any:
    """PyTorch, which only pickles need.

    Raises:
      UserError: when it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch pickle, which needs PyTorch: install realcustom_jax[convert], "
            "or convert it to .safetensors elsewhere"
        ) from None
