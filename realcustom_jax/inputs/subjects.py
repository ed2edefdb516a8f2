"""Subjects: reference image, target words, mask and strength of what must appear in an image."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule, is_list, shown
from realcustom_jax.inputs.transforms import ImageLike, read_once

AUTO = "auto"
STRENGTHS = ("strength", "face_strength", "body_strength")
MASK_MODES = ("instead", "intersect")
STRENGTH = Rule("strength of the subject", float, low=0)
_BOX_SIDE = Rule("", float)

# (left, top, right, bottom) in pixels of a reference image, as PIL's `crop` takes them.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)  # `==` of arrays is elementwise
class Subject:
    """A subject that must appear: a reference image, and the words of the prompt that it narrows.

    Attributes:
      image: the reference image: a PIL image, an array (H, W, 3), a path, encoded bytes, or an open file.
      words: the target words: a word or phrase of the prompt that the subject narrows, or several, such as
        ("dog", "puppy"). Each must be in the prompt. All its occurrences count; "dog#2" is only the second.
        "auto" finds the word of the prompt that the image shows; where the prompt has none, it writes one
        into the prompt ("on the beach" → "a dog on the beach"), see `Samples.prompts`. Not all models can
        (the literal word "auto" is ("auto",)). Two subjects cannot have the same word, unless one has a mask
        that replaces its guided mask.
      mask: where the subject may act (white): an array (H, W) of bool, uint8 or floats in [0, 1], or an
        image, of any size. It is stretched over the whole image and averaged to the mask grid, where it stays
        soft.
        None: the words alone decide.
      mask_mode: "instead" replaces the guided mask by `mask`; "intersect" multiplies the two.
      strength: factor on what the subject adds to the image, 0 or more; 0 removes the subject.
      plurals: whether "dog" also matches "dogs", and "dogs" matches "dog".
      match_case: whether "Dog" and "dog" are different words.
      images: several photos of the subject, instead of `image`. Their visual tokens act together.
      face: box of the face on the reference image: (left, top, right, bottom) in pixels, as `rc.find_face`
        returns it; with several photos, a list with a box or None for each.
      face_strength: factor on the visual tokens inside the face box, 0 or more: the weight of the identity.
      body_strength: factor on the other visual tokens; without a face box, on all. 1 and 1 is the method as
        published; 0 and 0 removes the subject.

    Raises:
      UserError: for an invalid mode, strength, box or switch, and without words or image. Words, image and
        mask are checked when the request is sampled.
    """

    image: ImageLike | None = None
    words: str | Sequence[str] | None = None
    mask: ImageLike | None = None
    mask_mode: str = "instead"
    strength: float = 1.0
    plurals: bool = False
    match_case: bool = False
    images: Sequence[ImageLike] = ()
    face: Box | Sequence[Box | None] | None = None
    face_strength: float = 1.0
    body_strength: float = 1.0

    def __post_init__(self):
        if self.words is None:
            raise UserError(
                "a subject's words must be given: the word or phrase of the prompt that it narrows, such as "
                'words="dog", or words="auto" for what its image shows'
            )
        if not (is_list(self.images) and not hasattr(self.images, "ndim")):
            raise UserError(f"images must be a list of images, not {type(self.images).__name__}")
        if (self.image is None) == (len(self.images) == 0):
            raise UserError("a subject takes an image, or images, a list of one or more photos of it")
        Rule("", str, choices=MASK_MODES).check("mask_mode", self.mask_mode)
        if self.mask is None and self.mask_mode != MASK_MODES[0]:
            raise UserError(f"mask_mode {self.mask_mode!r} needs a mask, but the subject has none")
        for name in ("plurals", "match_case"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be True or False, not {shown(getattr(self, name))}")
        # Open files are read now: they may be closed, or moved on, when the request is sampled.
        changes = {
            **{name: STRENGTH.check(name, getattr(self, name)) for name in STRENGTHS},
            "face": check_faces(self.face, len(self.photos)),
            "image": read_once(self.image),
            "images": tuple(map(read_once, self.images)),
            "mask": read_once(self.mask),
        }
        for name, value in changes.items():
            object.__setattr__(self, name, value)
        if self.face_strength != 1 and not any(self.faces):
            raise UserError(
                "face_strength needs a face box: face=(left, top, right, bottom) in pixels of the image; "
                "without one, body_strength is for the whole subject"
            )

    @property
    def photos(self) -> tuple[ImageLike, ...]:
        """All reference images, one or more."""
        return tuple(self.images) if self.image is None else (self.image,)

    @property
    def faces(self) -> tuple[Box | None, ...]:
        """The face box of each photo, or None."""
        face: Any = self.face  # `check_faces` has made it a box, or a tuple of boxes for several photos
        return face if len(self.photos) > 1 and face is not None else (face,) * len(self.photos)

    @property
    def acts(self) -> bool:
        """Whether any of its visual tokens has a weight above 0."""
        return self.strength > 0 and (self.body_strength > 0 or (self.face_strength > 0 and any(self.faces)))

    @property
    def guided(self) -> bool:
        """Whether its word map decides where it acts: it acts, and no mask replaces the map."""
        return self.acts and (self.mask is None or self.mask_mode != "instead")

    def __repr__(self) -> str:
        photos = f"images={len(self.images)} photos" if self.images else f"image={_shown(self.image)}"
        parts = [photos, f"words={self.words!r}"]
        parts += [] if self.mask is None else [f"mask={_shown(self.mask)}", f"mask_mode={self.mask_mode!r}"]
        parts += [] if self.face is None else [f"face={self.face!r}"]
        parts += [f"{name}={getattr(self, name):g}" for name in STRENGTHS if getattr(self, name) != 1]
        parts += [f"{name}=True" for name in ("plurals", "match_case") if getattr(self, name)]
        return f"Subject({', '.join(parts)})"


def check_faces(face: Any, photos: int) -> Any:
    """`Subject.face` in one form: a box or None, or for several photos a tuple with one for each.

    Raises:
      UserError: for another form, a box that is empty, or another number of boxes than photos.
    """
    if face is None:
        return None
    if not is_list(face) or len(face) == 0:
        raise UserError(f"face must be a box (left, top, right, bottom) in pixels, not {shown(face)}")
    face = list(face)
    if photos == 1 and not (face[0] is None or is_list(face[0])):
        return _check_box(face)
    if len(face) != photos:
        raise UserError(f"face must be a list of {photos} boxes, one for each photo; None for no face")
    boxes = tuple(None if box is None else _check_box(box) for box in face)
    return boxes[0] if photos == 1 else boxes


def _check_box(box: Any) -> Box:
    if not is_list(box) or len(box) != 4:
        raise UserError(f"a face box must be (left, top, right, bottom) in pixels, not {shown(box)}")
    left, top, right, bottom = (_BOX_SIDE.check("a side of a face box", x) for x in box)
    if left >= right or top >= bottom:
        raise UserError(f"the face box {shown(tuple(box))} is empty: left < right and top < bottom")
    return left, top, right, bottom


def _shown(image: ImageLike | None) -> str:
    """A short description of an image, for `repr`."""
    if isinstance(image, (str, os.PathLike)):
        return repr(os.fspath(image))
    if isinstance(image, bytes):
        return f"<{len(image)} bytes>"
    if isinstance(image, Image.Image):
        return f"<{image.width}x{image.height} {image.mode}>"
    shape = getattr(image, "shape", None)
    return f"<array {'x'.join(map(str, shape))}>" if shape else f"<{type(image).__name__}>"
