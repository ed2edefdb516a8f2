"""Face boxes: weights of the visual tokens inside and outside the face of a reference image.

RealCustom++ is used with two strengths: one for the face, which carries the identity, and one for the rest.
A visual token belongs to one patch of the reference, so a box on the reference selects tokens.
"""

from collections.abc import Sequence

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import shown
from realcustom_jax.inputs.subjects import Box, Subject
from realcustom_jax.inputs.token_grid import token_grid
from realcustom_jax.inputs.transforms import load_image
from realcustom_jax.inputs.views import unit_box
from realcustom_jax.models.family import Models


def token_weights(subjects: Sequence[Sequence[Subject]], slots: int, models: Models) -> np.ndarray | None:
    """Weights of all visual tokens; None if every weight is 1, so that this case keeps its program.

    Args:
      subjects: the subjects of each request.
      slots: R.
      models: configs, for the number of tokens and the fit of the reference.

    Returns:
      float32 (B, R, N), or (B, R, P·N) if a subject has several photos; 1 for empty slots and padding.

    Raises:
      UserError: for a box that lies outside its image, or where the square crop removes it.
    """
    if all(subject.face_strength == subject.body_strength == 1 for own in subjects for subject in own):
        return None
    assert models.realcustom is not None  # models without it take no subjects
    fit = str(models.realcustom.reference_fit)
    most = max((len(subject.photos) for own in subjects for subject in own), default=1)
    tokens = token_grid(models, most)
    grid, copies = tokens.side, len(tokens.layers)
    weights = np.ones((len(subjects), slots, most, copies * grid * grid), np.float32)
    for i, own in enumerate(subjects):
        for r, subject in enumerate(own):
            for p, (photo, box) in enumerate(zip(subject.photos, subject.faces, strict=True)):
                face = np.zeros((grid, grid), np.float32)
                if box is not None:
                    height, width = load_image(photo).shape[:2]
                    face = face_patches(box, height, width, fit, grid)
                # A patch that is partly in the box has a weight between the two.
                patches = face * subject.face_strength + (1 - face) * subject.body_strength
                weights[i, r, p] = np.tile(patches.reshape(-1), copies)
    return weights.reshape(len(subjects), slots, -1)


def face_patches(box: Box, height: int, width: int, fit: str, grid: int) -> np.ndarray:
    """Share of each patch that a box covers, float32 (grid, grid).

    Args:
      box: (left, top, right, bottom) in pixels of the image.
      height, width: size of the image.
      fit: how the image becomes square.
      grid: patches along a side of the image towers' input.

    Raises:
      UserError: for a box that lies outside the image, or where the square crop removes it.
    """
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise UserError(f"the face box {shown(box)} lies outside its image of {width}x{height} pixels")
    left, top, right, bottom = unit_box(box, height, width, fit)
    edges = np.arange(grid + 1) / grid

    def covered(low: float, high: float) -> np.ndarray:
        return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * grid

    patches = np.outer(covered(top, bottom), covered(left, right)).astype(np.float32)
    if not patches.any():
        raise UserError(
            f"the face box {shown(box)} lies in the part of its {width}x{height} image that the square "
            "crop removes: crop the image around the face first"
        )
    return patches
