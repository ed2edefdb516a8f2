"""Writes zip files, and reads untrusted ones safely."""

import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from realcustom_jax.common.errors import UserError, one_line
from realcustom_jax.common.rules import shown

# A character, or a story of a few dozen images, is far below these limits.
MAX_FILES, MAX_BYTES = 1000, 512 * 2**20
# Files unpack to at most so many bytes, and so many times their own size: images hardly shrink, zeros do.
_FREE, _RATIO = 16 * 2**20, 50

# Errors of zipfile for a zip that it cannot read.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,  # damaged content, by the three methods
    lzma.LZMAError,
    OSError,  # also a file that cannot be read
    EOFError,  # content that ends early
    RuntimeError,  # a password is needed, or the method is unknown (NotImplementedError)
    ValueError,  # names that are not valid Unicode, positions below 0
)


def unpacked_limit(size: int) -> int:
    """The most bytes that packed files of `size` bytes may unpack to."""
    return _FREE + _RATIO * size


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Pack files, {name: content}, as a zip; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            # A `ZipInfo` has a fixed date.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read_zip(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    """Read the files of a zip, {name: content}; folders are skipped.

    Raises:
      UserError: if it is not a zip, is damaged or encrypted, holds a name outside its folder, a link, more
        than `MAX_FILES` files, more than `max_bytes` bytes unpacked, or far more than its own size.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is neither a folder nor a file")
        with zipfile.ZipFile(path) as file:
            # Not `is_dir`: it fails for an empty name.
            entries = [entry for entry in file.infolist() if not entry.filename.endswith("/")]
            if len(entries) > MAX_FILES:
                raise UserError(f"{path} holds {len(entries)} files; at most {MAX_FILES} are read")
            limit = min(max_bytes, unpacked_limit(path.stat().st_size))
            files, left = {}, limit
            for entry in entries:
                _check_entry(path, entry)
                # The size in the header may be false, so limit the number of unpacked bytes instead.
                with file.open(entry) as stream:
                    content = stream.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise UserError(f"{path} unpacks to more than {limit >> 20} MiB")
                files[entry.filename] = content
            return files
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as a zip: {one_line(error)}") from None


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    if not name.parts:
        raise UserError(f"{path} holds a file without a name")
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise UserError(f"{path} holds the name {shown(entry.filename)}, which lies outside its folder")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{path} holds the link {shown(entry.filename)}")
