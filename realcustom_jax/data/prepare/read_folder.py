"""Readers of image folders, with captions in text files beside the images or in one .jsonl file."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from realcustom_jax.data.prepare.raw import CAPTION_NAMES, IMAGE_SUFFIXES, Raw, as_text, from_files, pick

_FILE_NAMES = ("file_name", "image", "path")  # default names of the image file in a .jsonl


def image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a folder, without its subfolders."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def read_images(folder: Path, prefix: str, start: int, count: int, caption_key: str | None) -> Iterator[Raw]:
    """Read images `start` to `start + count` of a folder, with NAME.txt and NAME.json beside NAME.jpg."""
    # NAME.jpg and NAME.png share a caption, so the suffix is part of the key.
    for name in image_names(folder)[start : start + count]:
        path, files = folder / name, {}
        for suffix in ("txt", "json"):
            content = _content(path.with_suffix(f".{suffix}"))
            if content is not None:
                files[suffix] = content
        image = _content(path)
        if image is not None:
            files[path.suffix[1:].lower()] = image
        yield from_files(f"{prefix}/{name}" if prefix else name, files, caption_key)


def read_jsonl(
    path: Path,
    prefix: str,
    start: int,
    number: int,
    count: int,
    image_key: str | None,
    caption_key: str | None,
) -> Iterator[Raw]:
    """Read lines {"file_name": …, "text": …} of a .jsonl file. File names are relative to its folder.

    Args:
      path: the .jsonl file.
      prefix: prefix of the keys, which end with the line number.
      start: position of the first line in bytes.
      number: number of the first line, from 1.
      count: number of lines.
      image_key: field with the image's file name; default: file_name, image or path.
      caption_key: field with the caption; default: caption or text.
    """
    # Keys have line numbers instead of file names, because an image may have several captions.
    with path.open("rb") as file:
        file.seek(start)
        for i, line in enumerate(itertools.islice(file, count), number):
            if line.strip():
                yield _from_line(line, f"{prefix}/{i}", path.parent, image_key, caption_key)


def _from_line(line: bytes, key: str, folder: Path, image_key: str | None, caption_key: str | None) -> Raw:
    """Make an example of one line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        values = None
    if not isinstance(values, dict):
        return Raw(key, problem="unreadable_text")
    name = values.get(pick(image_key, _FILE_NAMES, values))
    # A table from the internet must not copy private files of this machine into a data set.
    if isinstance(name, str) and not is_inside(name):
        return Raw(key, problem="outside")
    image = _content(folder / name) if isinstance(name, str) else None
    caption = values.get(pick(caption_key, CAPTION_NAMES, values))
    return Raw(key, image, as_text(caption), values)


def is_inside(name: str) -> bool:
    """Whether a file name in a table stays inside the table's folder."""
    path = PurePath(os.path.normpath(name))
    return not path.is_absolute() and path.parts[:1] != ("..",)


def _content(path: Path) -> bytes | None:
    """Content of a file; None if it cannot be read."""
    try:
        return path.read_bytes() if path.is_file() else None  # reading a named pipe could block forever
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None
