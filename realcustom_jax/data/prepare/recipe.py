"""Filtering raw examples and converting them to examples of the data set."""

import dataclasses
import hashlib
import io
import math
from typing import Any

from PIL import Image, UnidentifiedImageError

from realcustom_jax.data.image_text import FORMATS, Example, oriented_size
from realcustom_jax.data.prepare.raw import Raw
from realcustom_jax.data.prepare.sources import Names
from realcustom_jax.inputs.transforms import load_image


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The filters, and the format of the stored images.

    Attributes:
      names: names of columns and fields in the source.
      min_side: smallest short side in pixels.
      max_aspect: largest ratio of the long side to the short side.
      min_aesthetic: lowest aesthetic score; None for any.
      aesthetic_key: name of the aesthetic score in the metadata.
      min_caption, max_caption: range of the caption's length in characters.
      resize: short side in pixels to which larger images are shrunk; None stores all images unchanged.
      format: format of images that must be encoded again: jpeg, webp or png.
      quality: quality of JPEG and WebP.
      validation: share of the examples in the split "validation", chosen by their keys.
    """

    names: Names = dataclasses.field(default_factory=Names)
    min_side: int = 1
    max_aspect: float = math.inf
    min_aesthetic: float | None = None
    aesthetic_key: str = "aesthetic_score"
    min_caption: int = 1
    max_caption: float = math.inf
    resize: int | None = None
    format: str = "jpeg"
    quality: int = 95
    validation: float = 0.0


@dataclasses.dataclass(frozen=True)
class Made:
    """An example to store, its size in pixels after EXIF rotation, and its split."""

    example: Example
    width: int
    height: int
    split: str


def make(raw: Raw, recipe: Recipe) -> Made | str:
    """Convert a raw example, or return the reason (in `report.BAD` or `report.FILTERED`) to drop it."""
    # Cheap tests come first: only an image that passes all of them is decoded.
    if raw.problem:
        return raw.problem
    if not (_is_unicode(raw.key) and _is_unicode(raw.caption or "")):
        return "unreadable_text"
    if raw.image is None:
        return "no_image"
    caption = (raw.caption or "").strip()
    if not caption:
        return "no_caption"
    reason = _judge_text(caption, raw, recipe)
    if reason:
        return reason
    try:
        with Image.open(io.BytesIO(raw.image)) as image:
            width, height = oriented_size(image)
            reason = _judge_size(width, height, recipe)
            if reason:
                return reason
            image.load()  # decodes all pixels, and so finds truncated files
            data, (width, height) = _encode(image, raw.image, (width, height), recipe)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "truncated" if "truncated" in str(error).lower() else "undecodable"
    split = "validation" if _draw(raw.key) < recipe.validation else "train"
    return Made(Example(raw.key, data, caption, dict(raw.metadata)), width, height, split)


def _is_unicode(text: str) -> bool:
    """Whether text can be stored as UTF-8."""
    # Not possible: file names in other encodings, and lone surrogates from JSON.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _judge_text(caption: str, raw: Raw, recipe: Recipe) -> str | None:
    """Reason to drop an example by its caption or its score; None to keep it."""
    if len(caption) < recipe.min_caption:
        return "short_caption"
    if len(caption) > recipe.max_caption:
        return "long_caption"
    if recipe.min_aesthetic is not None:
        score = _number(raw.metadata.get(recipe.aesthetic_key))
        if score is None:
            return "no_score"
        if score < recipe.min_aesthetic:
            return "low_score"
    return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)  # some tables store numbers as text
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _judge_size(width: int, height: int, recipe: Recipe) -> str | None:
    """Reason to drop an example by its size; None to keep it."""
    short, long = sorted((width, height))
    if short < max(recipe.min_side, 1):
        return "too_small"
    return "too_elongated" if long > recipe.max_aspect * short else None


def _encode(
    image: Image.Image, data: bytes, size: tuple[int, int], recipe: Recipe
) -> tuple[bytes, tuple[int, int]]:
    """The bytes to store, and the size of their image."""
    # The given bytes whenever possible: encoding again loses quality.
    short = min(size)
    shorter = recipe.resize if recipe.resize is not None and short > recipe.resize else None
    if shorter is None and image.format in FORMATS:
        return data, size
    picture = Image.fromarray(load_image(image, "the image"))  # upright, RGB
    if shorter is not None:
        width, height = (max(1, round(side * shorter / short)) for side in size)
        size = width, height
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    options = {} if recipe.format == "png" else {"quality": recipe.quality}
    picture.save(stream, recipe.format, **options)
    return stream.getvalue(), size


def _draw(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    # So a larger data set moves no example to another split.
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest()) / 2**48
