"""Atomic file writes, so that interrupted work can resume."""

import contextlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager for an atomic write: yields a temporary path, and renames it to `path` at the end."""
    # A unique name, because a cluster may run the same task twice at once. In the same folder, because a
    # rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
      UserError: if the file is missing, not a regular file, or does not contain a JSON object.
    """
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if not path.is_file():  # opening a pipe would wait forever
            raise UserError(f"{path} is not a regular file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deep
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically: `write` writes a temporary file, which then replaces `path`.

    Raises:
      UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def disk_errors(data_dir: str | os.PathLike) -> Iterator[None]:
    """Turn a full disk or missing permission into a `UserError`. Finished parts stay, so the work can resume.

    Raises:
      UserError: instead of the error of the system or of ArrayRecord.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by other libraries, not by the system
            raise
        raise UserError(f"the data folder '{data_dir}' cannot be written: {error.strerror}") from None
    except RuntimeError as error:  # ArrayRecord's error for a full disk
        if "No space left" not in str(error):
            raise
        raise UserError(f"the data folder '{data_dir}' cannot be written: No space left on device") from None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn an `OSError` of an unreadable file, for example without permission, into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or folder exists; False for an invalid name, such as one that is too long."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def check_local(path: str | os.PathLike, name: str) -> None:
    """Check that a path names a local file or folder.

    Raises:
      UserError: for an address such as "gs://bucket/folder", for a ~ that no shell replaced, and for text
        that cannot be a file's name. The message calls the path `name`.
    """
    # `Path` would create local folders called "gs:" and "~".
    text = os.fspath(path)
    if re.match(r"[a-z][a-z0-9+.-]+:/", text):
        raise UserError(
            f"the {name} {text!r} is an address, not a folder: mount the bucket, as the scripts "
            "in launch/ do with gcsfuse, and give the mount folder"
        )
    if text == "~" or text.startswith("~/"):
        raise UserError(
            f"the {name} {text!r} begins with a ~ that the shell did not replace: write $HOME in its place"
        )
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"the {name} {text!a} is not valid text for the name of a file")


def make_folder(path: Path, name: str) -> None:
    """Create a folder if needed, and check that it is writable.

    Args:
      path: the folder.
      name: name of the folder in errors.

    Raises:
      UserError: if it cannot be created or written to.
    """
    check_local(path, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # permission bits alone do not tell, e.g. on read-only mounts
            pass
    except FileExistsError:
        raise UserError(f"the {name} {str(path)!r} is a file, it must be a folder") from None
    except OSError as error:
        raise UserError(f"the {name} {str(path)!r} cannot be written to: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically, in the format of diffusers: indented by 2, keys sorted."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, atomically."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))
