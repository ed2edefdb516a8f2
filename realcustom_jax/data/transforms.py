"""Images in, images out: loading anything, cropping, scaling to [-1, 1], and the reference's augmentation.

Every image between these functions is uint8 (H, W, 3), RGB.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from realcustom_jax.errors import UserError

ImageLike = str | os.PathLike | bytes | Image.Image | np.ndarray


def load_image(image: ImageLike, name: str | None = None, background: str = "white") -> np.ndarray:
    """Loads an image as uint8 (H, W, 3).

    The EXIF rotation is applied, transparency is composited on the background, grayscale, palette and 16-bit
    images become RGB. A floating-point array is taken to be in [0, 1].

    Args:
      image: a path, encoded bytes, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
      name: what to call the image in errors; by default its path or its type.
      background: colour that shows where the image is transparent.

    Raises:
      UserError: the file is missing, or the content is not a whole image or has no pixels; the sentence names
        the image.
    """
    name = name or _describe(image)
    if isinstance(image, np.ndarray):
        image = _from_array(image, name)
    try:
        if isinstance(image, Image.Image):
            loaded = _to_rgb(image, background)  # decodes only now when the picture comes from `Image.open`
        else:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else Path(image)) as opened:
                loaded = _to_rgb(opened, background)
    except FileNotFoundError:
        raise UserError(f"the image {name} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL raises any of these for a broken file, depending on the format and on where the damage is.
        raise UserError(f"{name} cannot be decoded as an image ({_one_line(error)})") from None
    if loaded.size == 0:
        raise UserError(f"{name} has no pixels: it is {loaded.shape[0]} high and {loaded.shape[1]} wide")
    return loaded


def center_crop_resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The largest centred crop of the aspect of `size`, resampled to it with antialiasing.

    Args:
      image: uint8 (H, W, 3).
      size: the side of a square, or (height, width), in pixels.

    Returns:
      uint8 (height, width, 3); the input itself when it already has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    # `box` is in float pixels, so crop and resize are one resampling and the crop is never off by a rounding.
    scale = min(image.shape[0] / height, image.shape[1] / width)
    top, left = (image.shape[0] - height * scale) / 2, (image.shape[1] - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    # Lanczos overshoots when enlarging; bicubic keeps hard edges cleaner there.
    filter_ = Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), filter_, box=box))


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] → float32 [-1, 1], same shape: the range the VAE and the image towers take."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def augment_reference(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Makes the reference image differ from the training image, so that copying pixels does not pay.

    At strength 1: a crop that keeps 0.6 … 1.0 of the side or, as often, a picture shrunk to 0.6 … 1.0 of the
    side at a random place with its edges repeated around it; a horizontal flip half of the time; brightness,
    contrast and saturation each scaled by 0.8 … 1.2. Ranges and the flip's chance shrink linearly with
    `strength` and are nothing at 0.

    Args:
      image: uint8 (H, W, 3).
      rng: always drawn from the same number of times, so examples stay comparable across strengths.
      strength: in [0, 1]; the curriculum's value at this step.

    Returns:
      uint8 (H, W, 3); the input itself at strength 0.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"the augmentation strength must be between 0 and 1, but it is {strength}")
    zoom, top, left, direction, flip = rng.uniform(size=5)
    factors = 1 + 0.2 * strength * rng.uniform(-1, 1, size=3)
    if strength == 0:
        return image
    side = 1 - 0.4 * strength * zoom
    image = _zoom_in(image, side, top, left) if direction < 0.5 else _zoom_out(image, side, top, left)
    if flip < 0.5 * strength:
        image = image[:, ::-1]
    picture = Image.fromarray(np.ascontiguousarray(image))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, factor in zip(enhancers, factors, strict=True):
        picture = enhance(picture).enhance(float(factor))
    return np.asarray(picture)


def _zoom_in(image: np.ndarray, side: float, top: float, left: float) -> np.ndarray:
    """Crops `side` of each side, at a place given by `top` and `left` in [0, 1], and enlarges it again."""
    height, width = image.shape[:2]
    y, x = top * (1 - side) * height, left * (1 - side) * width
    box = (x, y, x + side * width, y + side * height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _zoom_out(image: np.ndarray, side: float, top: float, left: float) -> np.ndarray:
    """Shrinks the picture to `side` of each side, puts it at (`top`, `left`), and repeats its edges."""
    height, width = image.shape[:2]
    small_h, small_w = max(1, round(side * height)), max(1, round(side * width))
    small = np.asarray(Image.fromarray(image).resize((small_w, small_h), Image.Resampling.LANCZOS))
    y, x = round(top * (height - small_h)), round(left * (width - small_w))
    padding = ((y, height - small_h - y), (x, width - small_w - x), (0, 0))
    return np.pad(small, padding, mode="edge")


def _to_rgb(image: Image.Image, background: str) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL would clip 16 bits, not scale
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return np.array(image.convert("RGB"))


def _from_array(image: np.ndarray, name: str) -> Image.Image:
    shape = image.shape
    if image.ndim == 3 and shape[-1] == 1:
        image = image[..., 0]
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and shape[-1] in (3, 4))):
        raise UserError(f"{name} must have shape (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), not {shape}")
    if np.issubdtype(image.dtype, np.floating):
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise UserError(f"{name} is floating point and has values outside [0, 1]; pass uint8 or scale it")
        image = np.round(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"{name} must be uint8 or floating point, but it is {image.dtype}")
    return Image.fromarray(np.ascontiguousarray(image))


def _describe(image: Any) -> str:
    if isinstance(image, bytes):
        return f"an image of {len(image)} bytes"
    if isinstance(image, np.ndarray):
        return "the image array"
    if isinstance(image, Image.Image):
        return "the PIL image"
    if isinstance(image, str | os.PathLike):
        return f"'{os.fspath(image)}'"
    raise UserError(f"an image must be a path, bytes, a PIL image or an array, not {type(image).__name__}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
