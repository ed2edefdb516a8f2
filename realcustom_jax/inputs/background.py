"""Cuts a subject out of its background with OpenCV's GrabCut, which needs no weights."""

import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.face_detection import import_opencv
from realcustom_jax.inputs.subjects import Box
from realcustom_jax.inputs.transforms import ImageLike, load_image

# GrabCut takes seconds for large images; the outline is enlarged afterwards.
_SIDE = 384
_ROUNDS = 5
# Without a box the outermost pixels are taken for the background, as a share of each side.
_FRAME = 0.03


def cut_out(image: ImageLike, box: Box | None = None) -> Image.Image:
    """The subject of an image on white, like the background of transparent images.

    Args:
      image: as in `Subject`.
      box: (left, top, right, bottom) in pixels around the whole subject; None for nearly the whole image.

    Raises:
      UserError: without OpenCV, for an image of less than 16 pixels, or if nothing is left.
    """
    cv2 = import_opencv()
    photo = Image.fromarray(load_image(image))
    if min(photo.size) < 16:
        raise UserError(f"an image of {photo.width}x{photo.height} pixels is too small to cut a subject out")
    scale = min(1.0, _SIDE / max(photo.size))
    small = photo.resize((max(8, round(photo.width * scale)), max(8, round(photo.height * scale))))
    width, height = photo.size
    box = box or (_FRAME * width, _FRAME * height, (1 - _FRAME) * width, (1 - _FRAME) * height)
    left, top = (max(1, round(side * scale)) for side in box[:2])
    right = min(small.width - 1, round(box[2] * scale))
    bottom = min(small.height - 1, round(box[3] * scale))
    if right - left < 2 or bottom - top < 2:
        raise UserError(f"the box {box} has no room for a subject in an image of {width}x{height} pixels")
    # GrabCut takes OpenCV's order of the colours, blue first.
    pixels = np.ascontiguousarray(np.asarray(small)[..., ::-1])
    mask = np.zeros(pixels.shape[:2], np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clustering is random
    cv2.grabCut(
        pixels, mask, (left, top, right - left, bottom - top), *models, _ROUNDS, cv2.GC_INIT_WITH_RECT
    )
    inside = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    if inside.mean() < 0.005:
        raise UserError("no subject is found in the image: give a box around it, or use the image as it is")
    alpha = Image.fromarray(inside.astype(np.uint8) * np.uint8(255))
    alpha = alpha.resize(photo.size, Image.Resampling.BILINEAR)
    white = Image.new("RGB", photo.size, "white")
    return Image.composite(photo, white, alpha)
