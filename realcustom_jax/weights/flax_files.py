"""Flax's msgpack files: nested maps with arrays as extensions. Only where each array lies is kept.

Flax splits an array of more than 2**30 bytes into chunks: a map with the marker `__msgpack_chunked_array__`,
its `shape` and its `chunks`, the last two as maps from "0", "1", …
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

_EXTENSION_NDARRAY = 1  # flax.serialization's code of an array
_CHUNKED = "__msgpack_chunked_array__"
# Models have no lists, but a damaged file may announce one that would not fit into memory.
_LONGEST_LIST = 2**16

Names = tuple[str, ...]


class _Header(NamedTuple):
    """Of an array in the file: its `size` bytes are the last thing in its record."""

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int


def flax_places(path: Path) -> dict[str, Place]:
    """{names joined by "/": place} of all arrays of a file.

    Raises:
      UserError: for a file that is damaged or of another kind.
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
        strange = next((names for names, leaf in leaves.items() if not isinstance(leaf, Place)), None)
        if strange is not None:
            raise ValueError(f"{'/'.join(strange)} is no array")
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
        raise UserError(f"{path} is not a whole Flax msgpack file: {error!r}") from None


def _leaves(unpacker: msgpack.Unpacker, names: Names, entries: int | None = None) -> Iterator:
    """(names, `Place` or another value) of all that lies below a map.

    Args:
      unpacker: of the file, at the map's header, or behind it where `entries` is given.
      names: of the map.
      entries: of the map.
    """
    for _ in range(unpacker.read_map_header() if entries is None else entries):
        inner = (*names, unpacker.unpack())
        try:
            below = unpacker.read_map_header()
        except ValueError:  # no map: the unpacker has not moved
            leaf = unpacker.unpack()
            if isinstance(leaf, _Header):
                piece = (unpacker.tell() - leaf.size, leaf.size)
                leaf = Place(leaf.shape, leaf.dtype, (piece,))
            yield inner, leaf
        else:
            yield from _leaves(unpacker, inner, below)


def _array_header(code: int, data: bytes) -> _Header:
    if code != _EXTENSION_NDARRAY:
        raise ValueError(f"extension type {code}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    name = dtype.decode()
    kind = np.dtype(getattr(ml_dtypes, name, name))
    return _Header(_checked_shape(shape, kind, len(buffer)), kind, len(buffer))


def _join_chunks(leaves: Mapping[Names, Any]) -> dict[Names, Any]:
    """The leaves with one place for each array that is in chunks."""
    joined = dict(leaves)
    for names in leaves:
        if names[-1] == _CHUNKED:
            parent = names[:-1]
            below = {inner[len(parent) :]: joined.pop(inner) for inner in leaves if _lies_in(parent, inner)}
            joined[parent] = _chunked(_listed(below, "shape"), _listed(below, "chunks"))
    return joined


def _lies_in(parent: Names, names: Names) -> bool:
    return names[: len(parent)] == parent


def _listed(leaves: Mapping[Names, Any], name: str) -> list[Any]:
    """A list that Flax wrote as a map from "0", "1", …"""
    count = sum(names[0] == name for names in leaves)
    return [leaves[name, str(i)] for i in range(count)]


def _chunked(shape: Sequence[Any], chunks: Sequence[Place]) -> Place:
    """One place of an array's chunks."""
    (dtype,) = {chunk.dtype for chunk in chunks}
    pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
    return Place(_checked_shape(shape, dtype, sum(size for _, size in pieces)), dtype, pieces)


def _checked_shape(sizes: Sequence[Any], dtype: np.dtype, size: int) -> tuple[int, ...]:
    """The shape of an array; raises ValueError or TypeError where so many bytes are no such array."""
    shape = tuple(map(operator.index, sizes))
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size} bytes are no {dtype} {shape}")
    return shape
