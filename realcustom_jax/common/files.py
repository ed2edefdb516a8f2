"""Files that are there as a whole or not at all, so that what was cut off can go on."""

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
    """A path beside `path` to write to; what is there at the end takes its place.

    The name is unique: a cluster may try the same twice at once.
    """
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: when the file is missing or no regular file, or holds anything else.
    """
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if not path.is_file():  # opening a pipe would wait forever
            raise UserError(f"{path} is no regular file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        raise UserError(f"{path} is not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside the path, then move it there.

    Raises:
      UserError: when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as half:
            write(half)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def disk_errors(data_dir: str | os.PathLike) -> Iterator[None]:
    """A full disk, a folder without permission: one sentence. What is done stays, and can be gone on from."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(f"the data folder '{data_dir}' cannot be written: {error.strerror}") from None
    except RuntimeError as error:  # ArrayRecord's
        if "No space left" not in str(error):
            raise
        raise UserError(f"the data folder '{data_dir}' cannot be written: No space left on device") from None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turns an `OSError` of what cannot be read, for example without permission, into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def exists(path: str | os.PathLike) -> bool:
    """Whether there is such a file or folder; a name that no file could have is none."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def check_local(path: str | os.PathLike, name: str) -> None:
    """Looks at a path before it is made: those that would become a folder called "gs:" or "~" are refused.

    Raises:
      UserError: it is the address of a bucket, begins with a ~ that no shell replaced, or is no text that
        files are named with; the sentence calls it `name`.
    """
    text = os.fspath(path)
    if re.match(r"[a-z][a-z0-9+.-]+:/", text):
        raise UserError(
            f"the {name} {text!r} is an address, not a folder: mount the bucket, as the scripts "
            "in launch/ do with gcsfuse, and give the folder it is mounted at"
        )
    if text == "~" or text.startswith("~/"):
        raise UserError(
            f"the {name} {text!r} begins with a ~ that the shell did not replace: write $HOME in its place"
        )
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"the {name} {text!a} is not valid text for the name of a file")


def make_folder(path: Path, name: str) -> None:
    """Make a folder that can be written to.

    Raises:
      UserError: when it can't; the sentence calls the folder `name` and says why.
    """
    check_local(path, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise UserError(f"the {name} {str(path)!r} is a file, it must be a folder") from None
    except OSError as error:
        raise UserError(f"the {name} {str(path)!r} cannot be written to: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda half: half.write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda half: half.write_text(text, encoding="utf-8"))
