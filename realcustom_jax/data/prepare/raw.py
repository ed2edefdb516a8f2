"""What the readers of all kinds of sources yield: an example as it was found, not yet judged."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

# What counts as an image among a shard's or a folder's files. Formats that a data set does not hold are
# encoded anew when they are written.
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
# Where captions are looked for in JSON, jsonl and parquet when no name is given; img2dataset's and the hub's.
CAPTION_NAMES = ("caption", "text", "TEXT")


@dataclasses.dataclass(frozen=True)
class Raw:
    """One example of a source.

    Attributes:
      key: unique in the data set; made of the names of the source's files, so the same in every run.
      image: encoded bytes; None where there is none.
      caption: None where there is none.
      metadata: what the source says besides; JSON-able.
      problem: a reason of `report.BAD` that the reader found; the rest is then empty.
    """

    key: str
    image: bytes | None = None
    caption: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str | None = None


def from_files(key: str, files: Mapping[str, bytes], caption_key: str | None) -> Raw:
    """The example of files that share a name: {"jpg": …, "txt": …, "json": …}, by suffix in lower case.

    The caption is the .txt file's, else the JSON's; what else the JSON holds is metadata.
    """
    try:
        metadata = json.loads(files["json"]) if "json" in files else {}
        text = files["txt"].decode() if "txt" in files else None
    except (ValueError, RecursionError):  # of JSON, and of UTF-8, whose errors are ValueErrors too
        return Raw(key, problem="unreadable_text")
    if not isinstance(metadata, dict):
        return Raw(key, problem="unreadable_text")
    name = pick(caption_key, CAPTION_NAMES, metadata)
    caption = metadata.get(name) if text is None else text
    image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
    return Raw(key, image, as_text(caption), metadata)


def pick(given: str | None, known: Sequence[str], names: Mapping[str, Any] | Sequence[str]) -> str | None:
    """The name that was asked for, else the first known one that is there; None where none is."""
    return given or next((name for name in known if name in names), None)


def as_text(caption: Any) -> str | None:
    return caption if isinstance(caption, str) else None
