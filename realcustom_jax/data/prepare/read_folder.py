"""Folders of images, with captions in text files beside them or in one .jsonl file."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from realcustom_jax.data.prepare.raw import CAPTION_NAMES, IMAGE_SUFFIXES, Raw, as_text, from_files, pick

_FILE_NAMES = ("file_name", "image", "path")


def image_names(folder: Path) -> list[str]:
    """Names of the images in a folder, without its subfolders', in order."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def read_images(folder: Path, prefix: str, start: int, count: int, caption_key: str | None) -> Iterator[Raw]:
    """Images `start` to `start + count` of a folder, with NAME.txt and NAME.json beside NAME.jpg.

    Images that differ in the suffix alone share their caption, so the suffix is part of the key.
    """
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
    """Lines of a file of {"file_name": …, "text": …}; file names are relative to its folder.

    Args:
      path: of the .jsonl file.
      prefix: of the keys, which end with the line's number: an image may have several captions.
      start: where the first line begins, in bytes.
      number: of the first line, from 1.
      count: of lines.
      image_key: name of the file's name; by default file_name, image or path, what there is.
      caption_key: name of the caption; by default caption or text.
    """
    with path.open("rb") as file:
        file.seek(start)
        for i, line in enumerate(itertools.islice(file, count), number):
            if line.strip():
                yield _from_line(line, f"{prefix}/{i}", path.parent, image_key, caption_key)


def _from_line(line: bytes, key: str, folder: Path, image_key: str | None, caption_key: str | None) -> Raw:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # nested deeper than Python goes
        values = None
    if not isinstance(values, dict):
        return Raw(key, problem="unreadable_text")
    name = values.get(pick(image_key, _FILE_NAMES, values))
    if isinstance(name, str) and not is_inside(name):
        return Raw(key, problem="outside")
    image = _content(folder / name) if isinstance(name, str) else None
    caption = values.get(pick(caption_key, CAPTION_NAMES, values))
    return Raw(key, image, as_text(caption), values)


def is_inside(name: str) -> bool:
    """Whether a file's name, of a table, stays in the table's folder."""
    path = PurePath(os.path.normpath(name))
    return not path.is_absolute() and path.parts[:1] != ("..",)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None  # a pipe could be waited for, for ever
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None
