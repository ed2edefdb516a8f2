"""Positions of the arrays in Flax's msgpack files, without reading the arrays.

The format: nested maps, with arrays as msgpack extensions. Flax splits an array above 2**30 bytes into
chunks: a map with the marker `__msgpack_chunked_array__`, the `shape` and the `chunks`. Both are lists, which
Flax writes as maps with the keys "0", "1", …
"""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.weights.places import Place

_EXTENSION_NDARRAY = 1  # code of an array in flax.serialization
_CHUNKED = "__msgpack_chunked_array__"
# Models have no lists, but a damaged file may announce one that does not fit into memory.
_LONGEST_LIST = 2**16

Names = tuple[str, ...]


class _Header(NamedTuple):
    """Header of an array in the file. Its `size` bytes of data are the end of its record."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int


def flax_places(path: Path) -> dict[str, Place]:
    """{path: position} of all arrays in a file; a path joins names by "/".

    Raises:
      UserError: the file is damaged or of another format.
    """
    try:
        with open(path, "rb") as file:
            unpacker = msgpack.Unpacker(
                file,
                ext_hook=_array_header,
                raw=False,
                max_buffer_size=2**31 - 1,
                max_array_len=_LONGEST_LIST,
            )
            leaves = _join_chunks(dict(_leaves(unpacker, ())))
        other = next((names for names, leaf in leaves.items() if not isinstance(leaf, Place)), None)
        if other is not None:
            raise ValueError(f"{'/'.join(other)} is not an array")
        return {"/".join(names): place for names, place in leaves.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (
        msgpack.UnpackException,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} is not a complete Flax msgpack file: {error!r}") from None


def _leaves(unpacker: msgpack.Unpacker, names: Names, entries: int | None = None) -> Iterator:
    """Yield (names, `Place` or another value) for every leaf below a map.

    Args:
      unpacker: reads the file; it is at the map's header, or after it if `entries` is given.
      names: names of the map and of its parents.
      entries: number of entries of the map.
    """
    for _ in range(unpacker.read_map_header() if entries is None else entries):
        inner = (*names, unpacker.unpack())
        try:
            below = unpacker.read_map_header()
        except ValueError:  # not a map: the unpacker has not moved
            leaf = unpacker.unpack()
            if isinstance(leaf, _Header):
                # The unpacker is now at the end of the record, so the data is just before it.
                piece = (unpacker.tell() - leaf.size, leaf.size)
                leaf = Place(leaf.shape, leaf.dtype, (piece,))
            yield inner, leaf
        else:
            yield from _leaves(unpacker, inner, below)


def _array_header(code: int, data: bytes) -> _Header:
    """Parse an array's record, (shape, dtype name, bytes), and keep its header only."""
    if code != _EXTENSION_NDARRAY:
        raise ValueError(f"extension type {code}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    name = dtype.decode()
    kind = np.dtype(getattr(ml_dtypes, name, name))  # numpy does not know the name "bfloat16"
    return _Header(_checked_shape(shape, kind, len(buffer)), kind, len(buffer))


def _join_chunks(leaves: Mapping[Names, Any]) -> dict[Names, Any]:
    """The leaves, with the chunks of each chunked array joined into one place."""
    joined = dict(leaves)
    for names in leaves:
        if names[-1] == _CHUNKED:
            parent = names[:-1]
            below = {inner[len(parent) :]: joined.pop(inner) for inner in leaves if _is_below(parent, inner)}
            joined[parent] = _chunked(_listed(below, "shape"), _listed(below, "chunks"))
    return joined


def _is_below(parent: Names, names: Names) -> bool:
    """Whether a leaf is below a map."""
    return names[: len(parent)] == parent


def _listed(leaves: Mapping[Names, Any], name: str) -> list[Any]:
    """The list `name`, which Flax wrote as a map with the keys "0", "1", …"""
    count = sum(names[0] == name for names in leaves)
    return [leaves[name, str(i)] for i in range(count)]


def _chunked(shape: Sequence[Any], chunks: Sequence[Place]) -> Place:
    """Join the chunks of an array into one place."""
    # The unpacking fails, and the file counts as damaged, if the chunks differ in dtype.
    (dtype,) = {chunk.dtype for chunk in chunks}
    pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
    return Place(_checked_shape(shape, dtype, sum(size for _, size in pieces)), dtype, pieces)


def _checked_shape(sizes: Sequence[Any], dtype: np.dtype, size: int) -> tuple[int, ...]:
    """The shape of an array; raise ValueError or TypeError if it does not fit the number of bytes."""
    shape = tuple(map(operator.index, sizes))
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes are not an array {dtype} {shape}")
    return shape
