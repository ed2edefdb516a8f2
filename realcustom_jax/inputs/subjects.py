"""What a request asks to appear: a subject, its words, where it may act and how much."""

import dataclasses
import os
from collections.abc import Sequence

from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import Rule, is_list, shown
from realcustom_jax.inputs.matching import Matcher, candidates, choose_words
from realcustom_jax.inputs.target_words import phrases_of, without_number
from realcustom_jax.inputs.transforms import ImageLike, load_image, read_once

AUTO = "auto"
MASK_MODES = ("instead", "intersect")
STRENGTH = Rule("how much the subject acts", float, low=0)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)  # arrays have no equality of one answer
class Subject:
    """What must appear.

    Attributes:
      image: the reference image: a PIL image, an array (H, W, 3), a path, encoded bytes, or an open file.
      words: the target words, a word or phrase of the prompt that the subject narrows, or several of them:
        ("dog", "puppy"). Each must be in the prompt; every occurrence counts, "dog#2" is the second alone.
        "auto" takes the words of the prompt that the image shows, where the model can tell (the word itself
        is ("auto",)). No two subjects can narrow one word, unless one has a mask instead of the guided one.
      mask: where in the image the subject may act, of any size: an array (H, W) of bool, uint8 or floats in
        [0, 1], or an image; white is where it may act. It is stretched over the whole image and averaged down
        to the mask grid, where it stays soft. None leaves it to the words alone.
      mask_mode: "instead" of the guided mask, or to "intersect" with it.
      strength: factor on what the subject adds to the image, 0 or more; 0 is as if it were not there.
      plurals: whether "dog" is found in "dogs" and "dogs" in "dog".
      match_case: whether "Dog" is another word than "dog".
      images: several photos of the subject, in place of `image`: their visual tokens act side by side.

    Raises:
      UserError: for a mode, strength or switch that can't be, and without words or image. Words, image and
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
        changes = {
            "strength": STRENGTH.check("strength", self.strength),
            "image": read_once(self.image),
            "images": tuple(map(read_once, self.images)),
            "mask": read_once(self.mask),
        }
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    @property
    def photos(self) -> tuple[ImageLike, ...]:
        """All reference images."""
        return self.images or (self.image,)

    @property
    def guided(self) -> bool:
        """Whether its words say where it acts: it acts, and has no mask instead of the guided one."""
        return self.strength > 0 and (self.mask is None or self.mask_mode != "instead")

    def __repr__(self) -> str:
        photos = f"images={len(self.images)} photos" if self.images else f"image={_shown(self.image)}"
        parts = [photos, f"words={self.words!r}"]
        parts += [] if self.mask is None else [f"mask={_shown(self.mask)}", f"mask_mode={self.mask_mode!r}"]
        parts += [] if self.strength == 1 else [f"strength={self.strength:g}"]
        parts += [f"{name}=True" for name in ("plurals", "match_case") if getattr(self, name)]
        return f"Subject({', '.join(parts)})"


def _shown(image: ImageLike) -> str:
    """An image on a part of one line."""
    if isinstance(image, (str, os.PathLike)):
        return repr(os.fspath(image))
    if isinstance(image, bytes):
        return f"<{len(image)} bytes>"
    if isinstance(image, Image.Image):
        return f"<{image.width}x{image.height} {image.mode}>"
    shape = getattr(image, "shape", None)
    return f"<array {'x'.join(map(str, shape))}>" if shape else f"<{type(image).__name__}>"


def with_words(
    prompt: str, subjects: Sequence[Subject], matcher: Matcher, nouns: Sequence[str]
) -> list[Subject]:
    """The subjects of one request, with words in place of "auto".

    Args:
      prompt: of the request.
      subjects: its subjects.
      matcher: what compares their images with words.
      nouns: the vocabulary: what an image may show that the prompt does not name.

    Raises:
      UserError: where no word of the prompt fits an image, see `matching.choose_words`.
    """
    images = [load_image(subject.photos[0]) for subject in subjects if subject.words == AUTO]
    phrases = candidates(prompt)
    if not images:
        return list(subjects)
    given = [phrases_of(prompt, subject.words) for subject in subjects if subject.words != AUTO]
    logits = matcher.logits(images, [*phrases, *nouns])
    count = len(phrases)
    used = [without_number(phrase) for own in given for phrase in own]
    choices = iter(choose_words(prompt, phrases, logits[:, :count], nouns, logits[:, count:], used))
    return [
        dataclasses.replace(subject, words=next(choices).words, match_case=False)
        if subject.words == AUTO
        else subject
        for subject in subjects
    ]
