"""Annotated subjects of training images: reads their masks and cuts out references.

The metadata of an example may hold

    {"subjects": [{"words": "cat", "segmentation": {"size": [H, W], "counts": [n, n, …]}}, …]}

in any of COCO's formats, which pycocotools reads:

- `counts` as a list of integers: COCO's uncompressed run lengths, in column-major order. Runs of pixels
  outside and inside the subject alternate; the first run is outside.
- `counts` as text: the same run lengths, compressed.
- polygons, in pixels of the given size; the subject is their union:
  {"words": "cat", "size": [H, W], "segmentation": [[x, y, x, y, …], …]}.

A mask refers to the image after its EXIF rotation. It may have any size with the image's aspect ratio.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.transforms import center_crop_resize

# A cut-out subject covers this share of the reference's area, and spans at most this share of its side.
AREA = 0.32
EXTENT = 0.9
# A subject is cut out only if the crop shows at least the share SEEN of it, and it covers at least the share
# LEAST of the crop.
SEEN = 0.5
LEAST = 0.005

# Limit for the pixels of a mask: larger ones are a mistake and would exhaust memory.
_MAX_PIXELS = 2**27
# Compressed numbers: 5-bit digits, with a sixth bit on all but the last. pycocotools does not check this.
_COMPRESSED = re.compile(r"(?:[P-o]{0,11}[0-O])*")


def mark(words: str, mask: np.ndarray) -> dict[str, Any]:
    """Metadata entry of a subject; mask is bool (H, W)."""
    runs = np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=False, append=not mask[-1, -1]))
    counts = np.diff(runs, prepend=0).tolist()
    return {"words": words, "segmentation": {"size": list(mask.shape), "counts": counts}}


def marks(example: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Entries of an example's subjects, at least one.

    Raises:
      UserError: if there are none; the message names the example.
    """
    entries = example["metadata"].get("subjects")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"the example '{example['key']}' marks no subjects to cut references from; the format is in "
            "realcustom_jax.data.cut_outs"
        )
    return entries


def marked_words(entry: Mapping[str, Any], key: str) -> str:
    """Words of a marked subject in the caption; `key` names the example in errors."""
    words = entry.get("words") if isinstance(entry, dict) else None
    if not isinstance(words, str):
        raise UserError(f"the example '{key}' marks a subject without its words")
    return words


def marked_mask(entry: Mapping[str, Any], key: str) -> np.ndarray:
    """Mask of a marked subject, bool (H, W).

    Raises:
      UserError: if the entry is not in a format listed above; the message names the example, `key`.
    """
    try:
        return _mask(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the example '{key}' has an invalid subject entry ({type(error).__name__}: {error}); the format "
            "is in realcustom_jax.data.cut_outs"
        ) from None


def _mask(entry: Mapping[str, Any]) -> np.ndarray:
    segmentation = entry["segmentation"]
    has_polygons = isinstance(segmentation, list)
    height, width = size = (entry if has_polygons else segmentation)["size"]
    if not all(type(side) is int and side > 0 for side in size) or height * width > _MAX_PIXELS:
        raise ValueError(f"the size must be a height and a width, of at most {_MAX_PIXELS} pixels")
    if has_polygons:
        polygons: Any = _checked_polygons(segmentation, height, width)
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(bool)
    counts = segmentation["counts"]
    if isinstance(counts, str):
        if not _COMPRESSED.fullmatch(counts):
            raise ValueError("the counts are not compressed run lengths")
        return _decode_exactly(counts.encode(), height, width)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ValueError("the counts are neither a list of whole numbers nor text")
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"the counts are not those of {height}×{width} pixels")
    runs: Any = {"size": [height, width], "counts": counts}
    return coco.decode(coco.frPyObjects(runs, height, width)).astype(bool)


def _decode_exactly(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decode compressed run lengths, whose sum must be the number of pixels."""
    mask = _decode_at_most(counts, height, width)
    # pycocotools rejects counts for too many pixels. For too few, it leaves the rest of the mask
    # uninitialised. So the check is that the same counts are too many for a mask with one pixel less.
    if mask is None or _decode_at_most(counts, height * width - 1, 1) is not None:
        raise ValueError(f"the counts are not those of {height}×{width} pixels")
    return mask.astype(bool)


def _decode_at_most(counts: bytes, height: int, width: int) -> np.ndarray | None:
    """Decode compressed run lengths; None if the counts exceed the size."""
    try:
        return coco.decode({"size": [height, width], "counts": counts})
    except ValueError:
        return None


def _checked_polygons(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    """Check that polygons have at least three corners, and move corners outside the picture to its edge."""
    checked = []
    for polygon in polygons:
        corners = np.asarray(polygon, np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise ValueError("a polygon is not a list of numbers x, y, x, y, … with at least three corners")
        corners = corners.reshape(-1, 2).clip(0, (width, height))
        checked.append(corners.reshape(-1).tolist())
    if not checked:
        raise ValueError("there is no polygon")
    return checked


def cropped_mask(mask: np.ndarray, picture: tuple[int, int], crop: tuple[int, int], key: str) -> np.ndarray:
    """Crop a subject's mask as `center_crop_resize` crops its picture.

    Args:
      mask: bool, the mask in the whole picture, at any size.
      picture: (height, width) of the picture in pixels.
      crop: (height, width) of the crop.
      key: key of the example, for messages.

    Returns:
      bool with the crop's size; all False if the crop shows too little of the subject.

    Raises:
      UserError: if the aspect ratios of mask and picture differ; the message names the example.
    """
    (height, width), (rows, columns) = picture, mask.shape
    # Aspect ratios differ slightly, because sides are rounded when a picture is shrunk.
    if abs(width * rows - height * columns) > max(width + height, rows + columns):
        raise UserError(
            f"the example '{key}' marks a subject in a picture of {columns}×{rows}, but the picture has "
            f"{width}×{height} after its EXIF rotation"
        )
    # Resample the mask like the picture, in 8 bits, so that both stay aligned.
    inside = center_crop_resize(mask.astype(np.uint8) * np.uint8(255), crop) >= 128
    scale = min(height / crop[0], width / crop[1])
    share = inside.mean() * scale**2 * crop[0] * crop[1] / (height * width)  # of the whole picture
    seen = inside.mean() >= LEAST and share >= SEEN * mask.mean()
    return inside if seen else np.zeros_like(inside)


def shrink_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """Share of each square of pixels that a mask covers.

    Args:
      mask: bool (H, W).
      factor: side of a square; H and W are multiples of it.

    Returns:
      uint8 (H / factor, W / factor); 255 is all of the square.
    """
    height, width = (side // factor for side in mask.shape)
    # (H, W) → (h, factor, w, factor) → mean over each square (h, w)
    squares = mask.reshape(height, factor, width, factor).mean(axis=(1, 3), dtype=np.float32)
    return np.round(255 * squares).astype(np.uint8)


def cut_out(image: np.ndarray, mask: np.ndarray, size: int) -> Image.Image:
    """Cut out a subject, centred and scaled to cover `AREA`, or less if it would be longer than `EXTENT`.

    Args:
      image: uint8 (H, W, 3).
      mask: bool (H, W), not empty.
      size: side of the result in pixels.

    Returns:
      RGBA (size, size).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = min(
        size * (AREA / np.count_nonzero(mask)) ** 0.5, EXTENT * size / max(right - left, bottom - top)
    )
    alpha = mask[top:bottom, left:right, None].astype(np.uint8) * np.uint8(255)
    box = Image.fromarray(np.concatenate([image[top:bottom, left:right], alpha], axis=-1))
    # The result shows a square of `side` pixels around the subject. The transparent margin is for squares
    # that reach beyond the picture.
    side = size / scale
    margin = int(np.ceil(side)) + 1
    sheet = Image.new("RGBA", (box.width + 2 * margin, box.height + 2 * margin))
    sheet.paste(box, (margin, margin))
    x, y = (length / 2 + margin - side / 2 for length in box.size)
    return sheet.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


def vary_cut_out(subject: Image.Image, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Make a reference photo of a cut-out subject, with random background, pose and light.

    The background is light, and half of the subjects are flipped. At strength 1, the subject is also rotated
    by up to 12°, scaled by 0.8 … 1.12 and moved by up to 8 % of the side, and brightness, saturation and
    contrast are scaled by 0.88 … 1.12. All ranges shrink linearly with `strength`.

    Args:
      subject: RGBA (S, S), from `cut_out`.
      rng: the same number of values is drawn for every strength.
      strength: 0 to 1, the curriculum's value at this step.

    Returns:
      uint8 (S, S, 3).
    """
    scale, angle, x, y, flip, *light = rng.uniform(size=8)
    top, tilt = rng.uniform(170, 255, size=3), rng.uniform(-25, 25)
    posed = np.asarray(_posed(subject, scale, angle, (x, y), flip < 0.5, strength), np.float32)
    # Only the subject's colours vary here; the background has its own.
    brightness, saturation, contrast = 1 + 0.12 * strength * (2 * np.asarray(light, np.float32) - 1)
    colours = posed[..., :3] * brightness
    grey = colours.mean(axis=-1, keepdims=True)
    colours = 128 + contrast * (grey + saturation * (colours - grey) - 128)
    # The background is a vertical gradient, a wall and its light. (S, 1, 1) broadcasts over the colours.
    down = np.linspace(0, 1, len(posed), dtype=np.float32)[:, None, None]
    ground = top + down * (np.clip(top + tilt, 0, 255) - top)
    alpha = posed[..., 3:] / 255
    return np.clip(colours * alpha + ground * (1 - alpha) + 0.5, 0, 255).astype(np.uint8)


def _posed(
    subject: Image.Image,
    scale: float,
    angle: float,
    shift: tuple[float, float],
    flip: bool,
    strength: float,
) -> Image.Image:
    """Flip, rotate, scale and move a cut-out; `scale`, `angle` and `shift` are random numbers in [0, 1]."""
    side = subject.width
    factor = 1 + strength * (0.8 + 0.32 * scale - 1)
    radians = np.deg2rad(12 * strength * (2 * angle - 1))
    centre = side / 2
    x, y = (centre + 0.08 * side * strength * (2 * s - 1) for s in shift)
    # PIL needs the inverse transform, from positions in the result to positions in the cut-out.
    cos, sin = np.cos(radians) / factor, np.sin(radians) / factor
    across, down = ((-cos, -sin) if flip else (cos, sin)), (-sin, cos)
    rows = [(a, b, centre - a * x - b * y) for a, b in (across, down)]
    return subject.transform(
        (side, side), Image.Transform.AFFINE, (*rows[0], *rows[1]), Image.Resampling.BILINEAR
    )
