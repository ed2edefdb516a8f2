"""Where in a file the bytes of its tensors lie, and how one of them is read."""

import dataclasses
from pathlib import Path

import numpy as np

from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of one tensor in a file.

    Attributes:
      shape, dtype: of the tensor.
      pieces: (first byte, number of bytes) of its pieces, which joined are its values in C order. Most
        tensors have one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]


def read_place(path: Path, key: str, place: Place) -> np.ndarray:
    """Read one tensor; nothing else of the file comes into memory.

    Raises:
      UserError: the file is shorter than it was.
    """
    value = np.empty(place.shape, place.dtype)
    left = memoryview(value.reshape(-1).view(np.uint8))
    with open(path, "rb") as file:
        for start, size in place.pieces:
            file.seek(start)
            if file.readinto(left[:size]) != size:
                raise UserError(f"{path} changed while it was read: {key} is not whole")
            left = left[size:]
    return value
