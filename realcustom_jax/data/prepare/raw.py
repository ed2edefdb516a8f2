"""Raw examples, as the readers of all kinds of sources yield them before filtering."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

# Suffixes of image files in shards and folders. Formats that a data set cannot store are encoded again.
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
# Default names of captions in JSON, jsonl and parquet: those of img2dataset and of data sets on the hub.
CAPTION_NAMES = ("caption", "text", "TEXT")


@dataclasses.dataclass(frozen=True)
class Raw:
    """One example of a source.

    Attributes:
      key: unique in the data set; it is made of file names, so it is the same in every run.
      image: encoded bytes; None if missing.
      caption: None if missing.
      metadata: other values of the source, for JSON.
      problem: a reason in `report.BAD`, if the reader could not read the example; the rest is then empty.
    """

    key: str
    image: bytes | None = None
    caption: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None


def from_files(key: str, files: Mapping[str, bytes], caption_key: str | None) -> Raw:
    """Make an example of the files with one name: {"jpg": …, "txt": …, "json": …}, by lower-case suffix.

    The caption comes from the .txt file if there is one, otherwise from the JSON. The JSON is also metadata.
    """
    try:
        metadata = json.loads(files["json"]) if "json" in files else {}
        text = files["txt"].decode() if "txt" in files else None
    except (ValueError, RecursionError):  # errors of JSON and of UTF-8 are ValueErrors
        return Raw(key, problem="unreadable_text")
    if not isinstance(metadata, dict):
        return Raw(key, problem="unreadable_text")
    name = pick(caption_key, CAPTION_NAMES, metadata)
    caption = metadata.get(name) if text is None else text
    image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
    return Raw(key, image, as_text(caption), metadata)


def pick(given: str | None, known: Sequence[str], names: Mapping[str, Any] | Sequence[str]) -> str | None:
    """The given name, otherwise the first known name that exists, otherwise None."""
    return given or next((name for name in known if name in names), None)


def as_text(caption: Any) -> str | None:
    """A caption if it is text; tables may have numbers or nulls."""
    return caption if isinstance(caption, str) else None
