"""Reader of parquet files with a column of encoded images and a column of captions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.prepare.raw import CAPTION_NAMES, Raw, as_text, pick
from realcustom_jax.data.prepare.read_folder import is_inside

_IMAGE_COLUMNS = ("image", "jpg", "png", "webp")
_ROWS = 64  # rows in memory at a time


def read_parquet(path: Path, prefix: str, image_key: str | None, caption_key: str | None) -> Iterator[Raw]:
    """Stream the rows of a file. Keys end with the row number.

    Args:
      path: the file.
      prefix: prefix of the keys.
      image_key: column of bytes, or of {"bytes", "path"} as on the hub; default: image, jpg, png or webp.
      caption_key: column of captions; default: caption or text.

    Yields:
      the examples. Other columns of numbers and texts become metadata. A damaged file yields the rows that
      could be read, then one `truncated_file`.

    Raises:
      UserError: a column is missing; the message names the columns of the file.
    """
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = _column(path, names, "image", image_key, _IMAGE_COLUMNS)
            caption = _column(path, names, "caption", caption_key, CAPTION_NAMES)
            plain = [name for name in names if _is_plain(file.schema_arrow.field(name).type)]
            # Only these columns are read: embeddings in other columns can be larger than the images.
            columns = list(dict.fromkeys([image, caption, *plain]))
            for batch in file.iter_batches(_ROWS, columns=columns):
                for values in batch.to_pylist():
                    cell = values.pop(image)
                    if _names_outside(cell):
                        yield Raw(f"{prefix}/{row}", problem="outside")
                    else:
                        picture = _image_bytes(cell, path.parent)
                        yield Raw(f"{prefix}/{row}", picture, as_text(values.get(caption)), values)
                    row += 1
    except (pa.ArrowException, OSError):
        yield Raw(prefix, problem="truncated_file")


def _column(path: Path, names: list[str], what: str, given: str | None, known: tuple[str, ...]) -> str:
    """Name of the column with images or captions."""
    name = pick(given, known, names)
    if name in names:
        return name
    has = f"'{path}' has the columns {', '.join(names)}"
    if given:
        raise UserError(f"--{what}-key {given} is not a column: {has}")
    raise UserError(f"{has}: say with --{what}-key which one holds the {what}s")


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of a column can be stored as JSON metadata."""
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _names_outside(value: Any) -> bool:
    """Whether a cell names a file outside of the table's folder."""
    # The hub's image columns have either bytes or a path.
    if not isinstance(value, dict) or value.get("bytes") is not None:
        return False
    return isinstance(value.get("path"), str) and not is_inside(value["path"])


def _image_bytes(value: Any, folder: Path) -> bytes | None:
    """Encoded bytes of an image cell; None if there are none."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            try:
                file = folder / value["path"]
                return file.read_bytes() if file.is_file() else None
            except (OSError, ValueError, TypeError):  # the path is not a file name
                return None
        value = value.get("bytes")
    return value if isinstance(value, bytes) else None
