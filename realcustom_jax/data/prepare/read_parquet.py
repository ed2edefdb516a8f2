"""Parquet files with a column of encoded images and one of captions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.prepare.raw import CAPTION_NAMES, Raw, as_text, pick
from realcustom_jax.data.prepare.read_folder import is_inside

_IMAGE_COLUMNS = ("image", "jpg", "png", "webp")
_ROWS = 64  # in memory at a time


def read_parquet(path: Path, prefix: str, image_key: str | None, caption_key: str | None) -> Iterator[Raw]:
    """Streams a file's rows; keys end with the row's number.

    Args:
      path: of the file.
      prefix: of the keys.
      image_key: column of bytes, or of {"bytes", "path"} as the hub's; by default image, jpg, png or webp.
      caption_key: column of captions; by default caption or text.

    Yields:
      the examples, the other columns of numbers and texts as metadata. A file that is no whole parquet file
      yields what could be read, then one `torn_file`.

    Raises:
      UserError: when a column is missing; the sentence names those there are.
    """
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = _column(path, names, "image", image_key, _IMAGE_COLUMNS)
            caption = _column(path, names, "caption", caption_key, CAPTION_NAMES)
            plain = [name for name in names if _is_plain(file.schema_arrow.field(name).type)]
            wanted = list(dict.fromkeys([image, caption, *plain]))
            for batch in file.iter_batches(_ROWS, columns=wanted):
                for values in batch.to_pylist():
                    cell = values.pop(image)
                    if _names_outside(cell):
                        yield Raw(f"{prefix}/{row}", problem="outside")
                    else:
                        picture = _image_bytes(cell, path.parent)
                        yield Raw(f"{prefix}/{row}", picture, as_text(values.get(caption)), values)
                    row += 1
    except (pa.ArrowException, OSError):
        yield Raw(prefix, problem="torn_file")


def _column(path: Path, names: list[str], what: str, given: str | None, known: tuple[str, ...]) -> str:
    name = pick(given, known, names)
    if name in names:
        return name
    has = f"'{path}' has the columns {', '.join(names)}"
    if given:
        raise UserError(f"--{what}-key {given} is no column: {has}")
    raise UserError(f"{has}: say with --{what}-key which one holds the {what}s")


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of a column are JSON-able."""
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _names_outside(value: Any) -> bool:
    """Whether a cell names a file that is not in the table's folder."""
    if not isinstance(value, dict) or value.get("bytes") is not None:
        return False
    return isinstance(value.get("path"), str) and not is_inside(value["path"])


def _image_bytes(value: Any, folder: Path) -> bytes | None:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            try:
                file = folder / value["path"]
                return file.read_bytes() if file.is_file() else None
            except (OSError, ValueError, TypeError):  # no name of a file
                return None
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None
