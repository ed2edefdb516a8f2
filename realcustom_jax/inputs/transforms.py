"""Images in, images out: loading anything, cropping, scaling to [-1, 1], and the reference's augmentation.

Every image between these functions is uint8 (H, W, 3), RGB.
"""

import io
import os
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from realcustom_jax.common.errors import UserError

# Besides, what turns into an array: a JAX array.
ImageLike = str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray

# Pixels of an image. Larger ones are a mistake, and would fill the memory.
_MOST_PIXELS = 2**27


def load_image(image: ImageLike, name: str | None = None, background: str = "white") -> np.ndarray:
    """Loads an image as uint8 (H, W, 3).

    The EXIF rotation is applied, transparency is composited on the background, grayscale, palette and 16-bit
    images become RGB. Floating-point arrays are in [0, 1]; a PIL image of mode F may also be in [0, 255].

    Args:
      image: a path, encoded bytes, an open file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or
        (H, W, 4), JAX's too.
      name: what to call the image in errors; by default its path or its type.
      background: colour that shows where the image is transparent.

    Raises:
      UserError: the file is missing or no regular file, or the content is not a whole image, or has no pixels
        or more than a reference could need; the sentence names the image.
    """
    image = read_once(image)
    name = name or _describe(image)
    if isinstance(image, np.ndarray):
        image = _from_array(image, name)
    try:
        if isinstance(image, Image.Image):
            _check_size(name, image.height, image.width)
            loaded = _to_rgb(image, name, background)  # decodes only now if it comes from `Image.open`
        else:
            source = io.BytesIO(image) if isinstance(image, bytes) else _regular_file(Path(image), name)
            with Image.open(source) as opened:
                _check_size(name, opened.height, opened.width)
                loaded = _to_rgb(opened, name, background)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"the image {name} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL raises any of these for a broken file, depending on the format and on where the damage is.
        raise UserError(f"{name} cannot be decoded as an image ({_one_line(error)})") from None
    if loaded.size == 0:
        raise UserError(f"{name} has no pixels: it is {loaded.shape[0]} high and {loaded.shape[1]} wide")
    return loaded


def read_once(image: Any) -> Any:
    """The image, with the bytes of an open file in its place, and a numpy array in that of any other array.

    Raises:
      UserError: for a file that is not open for reading bytes, or is a pipe or a device.
    """
    if isinstance(image, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
        return image
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    if hasattr(image, "read"):
        return _read_file(image)
    if hasattr(image, "__array__"):
        try:
            array = np.asarray(image)
            return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        except Exception as error:  # other libraries raise what they like, of an array that is deleted
            raise UserError(f"the image cannot be read as an array ({_one_line(error)})") from None
    return image


def _read_file(file: Any) -> bytes:
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # in memory, as BytesIO, or closed, which reading tells
        regular = True
    if not regular:
        raise UserError("an image cannot be read from a pipe or a device: read its bytes and give those")
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)  # it may have been written or read just now
        content = file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"the open image file cannot be read ({_one_line(error)})") from None
    if not isinstance(content, bytes):
        raise UserError("the open image file must be opened for bytes, as open(path, 'rb') does")
    return content


def _regular_file(path: Path, name: str) -> Path:
    """Opening a FIFO or a device might wait forever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UserError(f"the image {name} is a folder")
    if not stat.S_ISREG(mode):
        raise UserError(f"the image {name} is a pipe or a device, it must be a file")
    return path


def _check_size(name: str, height: int, width: int) -> None:
    if height * width > _MOST_PIXELS:
        raise UserError(f"{name} is {height} high and {width} wide, more than {_MOST_PIXELS} pixels")


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


def _to_rgb(image: Image.Image, name: str, background: str) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits, not scale
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F") and image.width and image.height:
        image = Image.fromarray(_to_8_bits(np.asarray(image), name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return np.array(image.convert("RGB"))


def _to_8_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """Of PIL's modes with 32 bits a pixel, which have no range of their own: F, floats, and I, integers.

    The largest value tells the range: 1 for floats, 255, or 65535 for the integers of a 16-bit file.
    """
    floats = pixels.dtype.kind == "f"
    limit = 255 if floats else 65535
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= limit):  # neither holds for NaN
        raise UserError(f"{name} is of PIL's mode {'F' if floats else 'I'} and not within 0 and {limit}")
    if floats:
        return np.round(pixels * 255 if high <= 1 else pixels).astype(np.uint8)
    return (pixels if high <= 255 else pixels >> 8).astype(np.uint8)


def _from_array(image: np.ndarray, name: str) -> Image.Image:
    shape = image.shape
    if image.ndim == 3 and shape[-1] == 1:
        image = image[..., 0]
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and shape[-1] in (3, 4))):
        raise UserError(f"{name} must have shape (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), not {shape}")
    _check_size(name, *shape[:2])
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
        path = os.fspath(image)
        return f"'{path if len(path) <= 200 else path[:199] + '…'}'"
    raise UserError(
        f"an image must be a path, bytes, an open file, a PIL image or an array, not {type(image).__name__}"
    )


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
