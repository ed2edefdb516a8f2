"""Image loading and transforms: cropping, scaling to [-1, 1], and augmentation of references.

Between these functions each image is uint8 (H, W, 3) RGB.
"""

import io
import os
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from realcustom_jax.common.errors import UserError, one_line

# Arrays of other libraries, such as JAX, are accepted too.
ImageLike = str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray

# Limit on the pixels of an image. Larger images are most likely a mistake, and would fill the memory.
_MOST_PIXELS = 2**27


def load_image(image: ImageLike, name: str | None = None, background: str = "white") -> np.ndarray:
    """Load an image as uint8 (H, W, 3).

    EXIF rotation is applied. Transparent pixels are composited on the background. Grayscale, palette and
    16-bit images become RGB. Floating-point arrays must be in [0, 1]; a PIL image of mode F may also be in
    [0, 255].

    Args:
      image: a path, encoded bytes, an open file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or
        (H, W, 4) of numpy or JAX.
      name: name of the image in errors; None for its path or type.
      background: colour behind transparent pixels.

    Raises:
      UserError: if the file is missing or not a regular file, if the content is not a complete image, or if
        it has no pixels or too many. The message names the image.
    """
    given = read_once(image)
    name = name or _describe(given)
    if isinstance(given, np.ndarray):
        given = _from_array(given, name)
    try:
        if isinstance(given, Image.Image):
            _check_size(name, given.height, given.width)
            loaded = _to_rgb(given, name, background)  # decodes only now if it comes from `Image.open`
        else:
            source = io.BytesIO(given) if isinstance(given, bytes) else _regular_file(Path(given), name)
            with Image.open(source) as opened:
                _check_size(name, opened.height, opened.width)
                loaded = _to_rgb(opened, name, background)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"the image {name} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # For a damaged file PIL raises any of these; it depends on the format and on the damage.
        raise UserError(f"{name} cannot be decoded as an image ({one_line(error)})") from None
    if loaded.size == 0:
        raise UserError(f"{name} has no pixels: it is {loaded.shape[0]} high and {loaded.shape[1]} wide")
    return loaded


def stored_size(content: bytes) -> tuple[int, int]:
    """Height and width of an encoded image, without decoding it; (0, 0) if it is no image."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.height, opened.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0


def png_bytes(image: Image.Image, pnginfo: PngInfo | None = None) -> bytes:
    """An image as an encoded PNG file, with further chunks if given."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=pnginfo)
    return buffer.getvalue()


def read_once(image: Any) -> Any:
    """Convert an open file to its bytes, and an array of another library to numpy; return others unchanged.

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
            # `_from_array` does not know bfloat16, which is not a numpy type.
            return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        except Exception as error:  # other libraries raise errors of their own, e.g. for a deleted array
            raise UserError(f"the image cannot be read as an array ({one_line(error)})") from None
    return image


def _read_file(file: Any) -> bytes:
    """The whole content of an open file."""
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # in memory (BytesIO), or closed: `read` raises then
        regular = True
    if not regular:
        raise UserError("an image cannot be read from a pipe or a device: read its bytes and pass them")
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)  # the file position may be at the end, after a write or an earlier read
        content = file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"the open image file cannot be read ({one_line(error)})") from None
    if not isinstance(content, bytes):
        raise UserError("the open image file must be opened for bytes, as open(path, 'rb') does")
    return content


def _regular_file(path: Path, name: str) -> Path:
    """The path, if it is a regular file.

    Raises:
      UserError: for a folder, a pipe or a device.
    """
    # Opening a pipe or a device might wait forever.
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
    """Take the largest centred crop with the aspect ratio of `size`, and resample it with antialiasing.

    Args:
      image: uint8 (H, W, 3).
      size: the side of a square, or (height, width), in pixels.

    Returns:
      uint8 (height, width, 3); the input itself if it already has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    # `box` is in fractional pixels: crop and resize are one resampling, without rounding of the crop.
    scale = min(image.shape[0] / height, image.shape[1] / width)
    top, left = (image.shape[0] - height * scale) / 2, (image.shape[1] - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    # Lanczos for shrinking only: it overshoots at hard edges when it enlarges, bicubic does less.
    filter_ = Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), filter_, box=box))


def augment_reference(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Augment a reference image, so that it differs from the training image.

    At strength 1 the augmentations are: zoom in by a crop of 0.6 … 1.0 of the side, or zoom out to 0.6 … 1.0
    of the side with repeated edges, with probability ½ each; horizontal flip with probability ½; brightness,
    contrast and saturation each scaled by 0.8 … 1.2. All ranges and the flip probability are proportional to
    `strength`.

    Args:
      image: uint8 (H, W, 3).
      rng: random generator.
      strength: in [0, 1]; the value of the curriculum at this step.

    Returns:
      uint8 (H, W, 3); the input itself at strength 0.

    Raises:
      UserError: for a strength outside [0, 1].
    """
    # The reference is the training image itself: without augmentation the model would learn to copy pixels.
    if not 0 <= strength <= 1:
        raise UserError(f"the augmentation strength must be between 0 and 1, but it is {strength}")
    # Always the same number of draws, so that examples of different strengths stay comparable.
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
    """Crop the share `side` of each side, at the position (`top`, `left`) in [0, 1], and enlarge it."""
    height, width = image.shape[:2]
    y, x = top * (1 - side) * height, left * (1 - side) * width
    box = (x, y, x + side * width, y + side * height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _zoom_out(image: np.ndarray, side: float, top: float, left: float) -> np.ndarray:
    """Shrink the image to the share `side` of each side, place it at (`top`, `left`), repeat its edges."""
    height, width = image.shape[:2]
    small_h, small_w = max(1, round(side * height)), max(1, round(side * width))
    small = np.asarray(Image.fromarray(image).resize((small_w, small_h), Image.Resampling.LANCZOS))
    y, x = round(top * (height - small_h)), round(left * (width - small_w))
    padding = ((y, height - small_h - y), (x, width - small_w - x), (0, 0))
    return np.pad(small, padding, mode="edge")


def _to_rgb(image: Image.Image, name: str, background: str) -> np.ndarray:
    """A PIL image of any mode as uint8 (H, W, 3)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8 instead of scaling them
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F") and image.width and image.height:
        image = Image.fromarray(_to_8_bits(np.asarray(image), name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return np.array(image.convert("RGB"))


def _to_8_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """Convert pixels of PIL's 32-bit modes F (floats) and I (integers) to uint8.

    Raises:
      UserError: for values outside 0…255 (F) or 0…65535 (I).
    """
    # These modes have no fixed range, so the largest value decides: 0…1 or 0…255 for floats, 0…255 or 0…65535
    # (a 16-bit file) for integers.
    floats = pixels.dtype.kind == "f"
    limit = 255 if floats else 65535
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= limit):  # also true for NaN
        raise UserError(f"{name} has PIL's mode {'F' if floats else 'I'} and values not within 0 and {limit}")
    if floats:
        return np.round(pixels * 255 if high <= 1 else pixels).astype(np.uint8)
    return (pixels if high <= 255 else pixels >> 8).astype(np.uint8)


def _from_array(image: np.ndarray, name: str) -> Image.Image:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or floating point, as a PIL image."""
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
    """Name of an image for errors, if the caller gave none."""
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
