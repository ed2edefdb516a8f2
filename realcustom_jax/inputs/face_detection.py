"""Finds the face on a reference image with OpenCV's cascades, whose weights are part of its package.

The cascades are those for frontal human faces, cats' faces and human profiles. `studies/face_detection.py`
compares them with others.
"""

import dataclasses
import importlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.subjects import Box
from realcustom_jax.inputs.transforms import ImageLike, load_image

# The cascades find faces of at least 24 pixels, and their cost grows with the size of the image.
_LONG_SIDE = 640
# A reference shows its subject large: smaller faces, as shares of the shorter side, are in the background.
_SMALLEST = 1 / 8


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A file of cv2.data and its settings.

    Attributes:
      file: name of the file, without "haarcascade_" and ".xml".
      step: factor between two sizes of the search.
      neighbours: detections at nearly the same place that make a face.
      equalize: whether the grey levels are spread over the whole range first.
      flip: whether the mirrored image is searched too, for profiles that look to the other side.
    """

    file: str
    step: float
    neighbours: int
    equalize: bool = False
    flip: bool = False


# Tried in this order; the first that finds something decides.
CASCADES = (
    Cascade("frontalface_alt", 1.1, 4, equalize=True),
    Cascade("frontalcatface_extended", 1.05, 3),
    Cascade("profileface", 1.1, 4, flip=True),
)


def find_face(image: ImageLike) -> Box | None:
    """Find the largest face on a reference image, human or cat.

    Args:
      image: as in `Subject`.

    Returns:
      (left, top, right, bottom) in pixels, for `Subject.face`; None if no face is found.

    Raises:
      UserError: without OpenCV (`pip install "realcustom_jax[faces]"`), or for an image that cannot be read.
    """
    cv2 = import_opencv()
    photo = Image.fromarray(load_image(image)).convert("L")
    scale = _LONG_SIDE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    grey = photo.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    for cascade in CASCADES:
        boxes = detect(cv2, cascade, grey)
        if boxes:
            left, top, width, height = max(boxes, key=lambda box: box[2] * box[3])
            right, bottom = (left + width) / scale, (top + height) / scale
            return (
                float(round(left / scale)),
                float(round(top / scale)),
                float(min(round(right), photo.width)),
                float(min(round(bottom), photo.height)),
            )
    return None


def detect(cv2: Any, cascade: Cascade, grey: Image.Image) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of each detection."""
    detector = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{cascade.file}.xml")
    if cascade.equalize:
        grey = ImageOps.equalize(grey)
    smallest = round(min(grey.size) * _SMALLEST)

    def search(image: Image.Image) -> list[tuple[int, int, int, int]]:
        found = detector.detectMultiScale(
            np.asarray(image), cascade.step, cascade.neighbours, minSize=(smallest, smallest)
        )
        return [(int(x), int(y), int(width), int(height)) for x, y, width, height in found]

    boxes = search(grey)
    if cascade.flip:
        boxes += [(grey.width - x - w, y, w, h) for x, y, w, h in search(ImageOps.mirror(grey))]
    return boxes


def import_opencv() -> Any:
    """The module cv2. Raises `UserError` if it is missing or has no cascades."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        raise UserError('this needs OpenCV: pip install "realcustom_jax[faces]"') from None
    if not hasattr(cv2, "CascadeClassifier"):  # OpenCV 5 has no cascades
        raise UserError('this needs OpenCV 4, not 5: pip install "realcustom_jax[faces]"')
    return cv2
