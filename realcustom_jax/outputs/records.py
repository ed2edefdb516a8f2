"""Records: everything that is needed to reproduce an image, and their storage in PNG files.

The settings are JSON in a text chunk, which image viewers can show. Reference images and masks follow in
private chunks, which other programs skip.
"""

import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.subjects import Subject
from realcustom_jax.inputs.transforms import load_image, png_bytes
from realcustom_jax.inputs.user_masks import load_mask
from realcustom_jax.options import SamplingOptions

KEY = "realcustom_jax"
# Type of our chunks. In PNG the case of each letter is a flag: ancillary, private, reserved, safe to copy.
_CHUNK = b"rcIm"

# Fields of a subject that are stored in the JSON; its images and mask are chunks.
_PLAIN = (
    "words", "mask_mode", "strength", "plurals", "match_case", "face", "face_strength", "body_strength"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Record:
    """Everything that an image depends on, except the weights of the model.

    Attributes:
      prompt, negative_prompt, seed: as in the request.
      subjects: the subjects, with the words that were chosen for "auto".
      options: all sampling options, with this request's own numbers.
      model: the arguments of `load`, see `Pipeline.source`; empty if unknown.
    """

    prompt: str
    negative_prompt: str
    seed: int
    subjects: tuple[Subject, ...]
    options: Mapping[str, Any]
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def png_info(self) -> PngInfo:
        """The record as chunks of a PNG file; `read_record` is the inverse."""
        # The JSON refers to images and masks by their index in this list.
        attachments: list[bytes] = []

        def attach(content: bytes) -> int:
            attachments.append(content)
            return len(attachments) - 1

        values = dataclasses.asdict(dataclasses.replace(self, subjects=()))
        values["subjects"] = [_subject_values(subject, attach) for subject in self.subjects]
        info = PngInfo()
        info.add_text(KEY, json.dumps(values))
        for content in attachments:
            info.add(_CHUNK, content)
        return info


def read_record(file: str | Path | bytes, path: str | Path | None = None) -> Record:
    """Read the record from a PNG file that `Samples.save` wrote.

    Args:
      file: path or content of the file.
      path: its name in errors; default: the path.

    Raises:
      UserError: if the file is not an image, has no record, or has an invalid record.
    """
    path = path or ("the image" if isinstance(file, bytes) else file)
    load_image(file)  # for its error messages
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            text = getattr(image, "text", {}).get(KEY)
            chunks = [chunk[1] for chunk in getattr(image, "private_chunks", []) if chunk[0] == _CHUNK]
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"'{path}' cannot be read ({error})") from None
    if text is None:
        raise UserError(f"'{path}' does not say how it was made: only PNG files of this package do")
    # The file may come from anyone, so every part is checked.
    try:
        values = json.loads(text)
        values["subjects"] = tuple(_subject_of(one, chunks) for one in values["subjects"])
        SamplingOptions(**values["options"])
        record = Record(**values)
        kinds = {"prompt": str, "negative_prompt": str, "seed": int, "model": dict}
        for name, kind in kinds.items():
            if type(getattr(record, name)) is not kind:
                raise TypeError(f"{name} has type {type(getattr(record, name)).__name__}")
        for name, value in record.model.items():
            if not all(isinstance(text, str) for text in (value if isinstance(value, list) else [value])):
                raise TypeError(f"model: {name} is not a text")
        return record
    except UserError as error:
        raise UserError(f"'{path}' says how it was made, but not correctly: {error}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"'{path}' says how it was made, but not correctly ({reason})") from None


def _subject_values(subject: Subject, attach: Callable[[bytes], int]) -> dict[str, Any]:
    """A subject as JSON values; `attach` stores a file and returns its index."""
    plain = {name: getattr(subject, name) for name in _PLAIN}
    # Files are stored unchanged; arrays and PIL images as PNG, masks as float32 arrays to keep soft values.
    files = (_file_of(x) or png_bytes(Image.fromarray(load_image(x))) for x in subject.photos)
    images = [attach(content) for content in files]
    mask = None if subject.mask is None else attach(_file_of(subject.mask) or _npy_of(subject.mask))
    return {**plain, "images": images, "mask": mask}


def _subject_of(values: Mapping[str, Any], attachments: list[bytes]) -> Subject:
    """Inverse of `_subject_values`."""
    images = [attachments[number] for number in values["images"]]
    mask = None if values["mask"] is None else attachments[values["mask"]]
    if mask is not None and mask.startswith(np.lib.format.MAGIC_PREFIX):
        mask = np.load(io.BytesIO(mask), allow_pickle=False)  # a pickle could run code
    one = {"image": images[0]} if len(images) == 1 else {"images": images}
    return Subject(**one, mask=mask, **{name: values[name] for name in _PLAIN if name in values})


def with_files_read(subject: Subject) -> Subject:
    """A subject whose image paths are replaced by the content of the files."""
    # The files may change or disappear before `Samples.save` stores them.
    photos = tuple(_file_of(photo) or photo for photo in subject.photos)
    mask = subject.mask
    if mask is not None:
        mask = _file_of(mask) or mask
    if subject.images:
        return dataclasses.replace(subject, images=photos, mask=mask)
    return dataclasses.replace(subject, image=photos[0], mask=mask)


def _file_of(image: Any) -> bytes | None:
    """The content of an image file, given by path or as bytes; None for arrays and PIL images."""
    if not isinstance(image, (str, os.PathLike)):
        return image if isinstance(image, bytes) else None
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UserError(f"the image '{image}' cannot be read again ({error.strerror})") from None


def _npy_of(mask: Any) -> bytes:
    """A mask as an encoded npy file, float32 (H, W)."""
    buffer = io.BytesIO()
    np.save(buffer, load_mask(mask), allow_pickle=False)
    return buffer.getvalue()
