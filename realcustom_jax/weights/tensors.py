"""Files of named tensors: safetensors (one file or shards), Flax msgpack, PyTorch pickles.

A tensor is read when it is used, and nothing else of its file stays in memory. Safetensors are also written
one tensor at a time, so copying a model needs only the memory of its largest tensor.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import safetensors

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import read_json, replacing, write_json
from realcustom_jax.weights.flax_files import flax_places
from realcustom_jax.weights.keys import unflatten
from realcustom_jax.weights.places import Place, Stamp, read_place

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
SHARD_BYTES = 5 * 10**9  # as transformers; diffusers allows 10 GB


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Named tensors on disk.

    Attributes:
      source: name of the file, for messages.
      shapes: {key: shape} of all tensors.
      read: key → the tensor as a numpy array, in the file's dtype.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    def select(self, prefix: str) -> "Tensors":
        """The tensors whose keys begin with `prefix`, which is removed."""
        shapes = {key[len(prefix) :]: shape for key, shape in self.shapes.items() if key.startswith(prefix)}
        return dataclasses.replace(self, shapes=shapes, read=lambda key: self.read(prefix + key))


def open_tensors(path: Path) -> Tensors:
    """Open a file of tensors. Its extension gives the format; `….index.json` lists shards.

    Raises:
      UserError: the file is missing, damaged or of an unknown format, or a pickle without PyTorch.
    """
    if not path.is_file():
        raise UserError(f"the weights file {str(path)!r} does not exist")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_placed(path, _safetensors_places)
    if path.suffix == ".msgpack":
        return _open_placed(path, flax_places)
    if path.suffix in PICKLES:
        return _open_pickle(path)
    known = ", ".join((".safetensors", ".safetensors.index.json", ".msgpack", *PICKLES))
    raise UserError(f"{path} is not a known kind of weights file; known: {known}")


# {name in a safetensors header: dtype}
_SAFE_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def _open_placed(path: Path, find_places: Callable[[Path], Mapping[str, Place]]) -> Tensors:
    """Open a file in which every tensor has a known position."""
    # Before the positions are read: a file that changes meanwhile is then noticed at the first tensor.
    try:
        stamp = Stamp.of_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    places, absolute = find_places(path), path.absolute()  # the working directory may change later
    shapes = {key: place.shape for key, place in places.items()}
    return Tensors(str(path), shapes, lambda key: read_place(absolute, stamp, key, places[key]))


def _safetensors_places(path: Path) -> dict[str, Place]:
    """Positions of the tensors in a safetensors file.

    The format: 8 bytes with the header's length (little-endian), the header in JSON, the tensors' bytes.
    """
    # The library only checks the file. To read tensors, it would parse the header again for each one, or keep
    # everything that was read in memory.
    try:
        with open(path, "rb") as file, safetensors.safe_open(path, framework="numpy"):
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places = {}
        for key, entry in header.items():
            start, end = entry["data_offsets"]  # counted from the end of the header
            piece = (8 + length + start, end - start)
            places[key] = Place(tuple(entry["shape"]), _SAFE_DTYPES[entry["dtype"]], (piece,))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}") from None
    except KeyError as error:
        raise UserError(f"{path} holds tensors of the unknown dtype {error}") from None
    return places


def _open_shards(path: Path) -> Tensors:
    """Open the shards that an index file of transformers or diffusers lists."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path} is not an index of shards: it has no weight_map of tensors")
    for key, name in weight_map.items():
        # An index from the internet must not name files elsewhere on this machine, or other indexes.
        if not isinstance(name, str) or name != Path(name).name or Path(name).suffix == ".json":
            raise UserError(f"{path}: weight_map names {name!r} for {key}, not a weights file beside it")
    shards = {name: open_tensors(path.parent / name) for name in sorted(set(weight_map.values()))}
    shapes = {key: shape for shard in shards.values() for key, shape in shard.shapes.items()}
    if shapes.keys() != weight_map.keys():
        differing = sorted(shapes.keys() ^ weight_map.keys())
        raise UserError(f"{path} does not list what its shards hold: {', '.join(differing[:20])}")
    return Tensors(str(path), shapes, lambda key: shards[weight_map[key]].read(key))


def _open_pickle(path: Path) -> Tensors:
    """Open a PyTorch pickle. `weights_only` makes torch reject pickles that would run code."""
    torch = _torch(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds of errors for damaged and for unsafe pickles
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} holds more than plain PyTorch weights, which is not safe to read ({reason}): use its "
            ".safetensors form"
        ) from None
    # Training code often saves the state dict inside a larger dict, under one of these names.
    for name in ("state_dict", "module", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise UserError(f"{path} does not hold a state dict of names and tensors")

    def read(key: str) -> np.ndarray:
        value = state[key].contiguous()
        if value.dtype == torch.bfloat16:  # PyTorch cannot convert it to numpy, so go through int16
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()

    return Tensors(str(path), {key: tuple(value.shape) for key, value in state.items()}, read)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file that `open_tensors` has checked; {} for other formats."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def write_tensors(
    path: Path,
    tensors: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file of tensors. The extension gives the format; the file appears when it is complete.

    Args:
      path: the file. A `.safetensors` file above `shard_bytes` is written as shards with an index.
      tensors: arrays or `LazyArray`s. Only `.safetensors` are written one tensor at a time.
      shard_bytes: largest size of one file in bytes.
      metadata: further entries of the `.safetensors` header.

    Raises:
      UserError: the format cannot be written, PyTorch is missing for a pickle, the disk is full, or a lazy
        tensor has another shape or dtype than it announced.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            _write_safetensors(path, tensors, shard_bytes, metadata or {})
        elif path.suffix == ".msgpack":
            whole = unflatten({key: _values(path, key, value) for key, value in tensors.items()})
            with replacing(path) as temporary:
                temporary.write_bytes(flax.serialization.msgpack_serialize(whole))
        elif path.suffix in PICKLES:
            _write_pickle(path, tensors)
        else:
            raise UserError(
                f"weights cannot be written as {path.name}: .safetensors, .msgpack, .pth are known"
            )
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _write_safetensors(
    path: Path, tensors: Mapping[str, Any], shard_bytes: int, metadata: Mapping[str, str]
) -> None:
    """Write one safetensors file, or shards with an index."""
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + _nbytes(value) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += _nbytes(value)
    index_path = path.with_name(f"{path.name}.index.json")
    if len(shards) == 1:
        _stream_safetensors(path, shards[0], metadata)
        index_path.unlink(missing_ok=True)
        return
    weight_map = {}
    # Names and index as in transformers and diffusers.
    for i, shard in enumerate(shards, 1):
        name = f"{path.stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        _stream_safetensors(path.with_name(name), shard, metadata)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(map(_nbytes, tensors.values()))}, "weight_map": weight_map}
    write_json(index_path, index)
    path.unlink(missing_ok=True)  # an earlier model, which readers would prefer to the index


def _nbytes(value: Any) -> int:
    return math.prod(value.shape) * value.dtype.itemsize


def _stream_safetensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, one tensor at a time; see `_safetensors_places` for the format."""
    # The library's own writer needs all tensors in memory.
    names = {dtype: name for name, dtype in _SAFE_DTYPES.items()}
    # The library's order: wide dtypes first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    # transformers rejects files without this entry.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for key in order:
        begin, end = end, end + _nbytes(tensors[key])
        dtype = np.dtype(tensors[key].dtype)
        if dtype not in names:
            raise UserError(f"{path} cannot be written: {key} is {dtype}, which .safetensors cannot hold")
        header[key] = {
            "dtype": names[dtype],
            "shape": list(tensors[key].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors' bytes begin at a multiple of 8
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            # `file.write` instead of numpy's `tofile`, whose error does not say that the disk is full.
            file.write(_values(path, key, tensors[key]).reshape(-1).view(np.uint8).data)


def _write_pickle(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a PyTorch state dict."""
    torch = _torch(path)

    def convert(key: str) -> Any:
        value = _values(path, key, tensors[key])
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    state = {key: convert(key) for key in tensors}
    # PyTorch reports a full disk only if it gets an open file, not a path.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # closing its archive fails too and hides the first error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _values(path: Path, key: str, tensor: Any) -> np.ndarray:
    """The values of a tensor in C order.

    Raises:
      UserError: a lazy tensor has another shape or dtype than it announced.
    """
    value = np.require(np.asarray(tensor), requirements="C")
    # The header with the announced shapes is already written.
    announced = np.dtype(tensor.dtype), tuple(tensor.shape)
    if (value.dtype, value.shape) != announced:
        raise UserError(
            f"{path} cannot be written: {key} was announced as {announced[0]} {announced[1]} and is read as "
            f"{value.dtype} {value.shape}"
        )
    return value


def _torch(path: Path) -> Any:
    """Import PyTorch, which only pickles need.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch pickle, which needs PyTorch: install realcustom_jax[convert], "
            "or convert it to .safetensors elsewhere"
        ) from None
