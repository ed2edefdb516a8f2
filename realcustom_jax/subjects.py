"""What a request asks to appear: a subject, its words, where it may act and how much."""

import dataclasses
from collections.abc import Sequence

from realcustom_jax.data.target_words import phrases_of
from realcustom_jax.data.transforms import ImageLike, load_image
from realcustom_jax.errors import UserError
from realcustom_jax.matching import Matcher, candidates, choose_words
from realcustom_jax.options import Rule

AUTO = "auto"
MASK_MODES = ("instead", "intersect")
STRENGTH = Rule("how much the subject acts", float, low=0)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What must appear.

    Attributes:
      image: the reference image: a PIL image, an array (H, W, 3), a path, or encoded bytes.
      words: the target words, a word or phrase of the prompt that the subject narrows, or several of them:
        ("dog", "puppy"). Each must be in the prompt; every occurrence counts. "auto" takes the words of the
        prompt that the image shows, where the model can tell (the word itself is ("auto",)).
      mask: where in the image the subject may act, of any size: an array (H, W) of bool, uint8 or floats in
        [0, 1], or an image; white is where it may act. It is stretched over the whole image and averaged down
        to the mask grid, where it stays soft. None leaves it to the words alone.
      mask_mode: "instead" of the guided mask, or to "intersect" with it.
      strength: factor on what the subject adds to the image, 0 or more; 0 is as if it were not there.
      plurals: whether "dog" is found in "dogs" and "dogs" in "dog".
      match_case: whether "Dog" is another word than "dog".

    Raises:
      UserError: for a mode, strength or switch that can't be. Words, image and mask are checked when the
        request is sampled.
    """

    image: ImageLike
    words: str | Sequence[str] = AUTO
    mask: ImageLike | None = None
    mask_mode: str = "instead"
    strength: float = 1.0
    plurals: bool = False
    match_case: bool = False

    def __post_init__(self):
        Rule("", str, choices=MASK_MODES).check("mask_mode", self.mask_mode)
        object.__setattr__(self, "strength", STRENGTH.check("strength", self.strength))
        for name in ("plurals", "match_case"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be True or False, not {getattr(self, name)!r}")


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
    images = [load_image(subject.image) for subject in subjects if subject.words == AUTO]
    phrases = candidates(prompt)
    if not images:
        return list(subjects)
    given = [phrases_of(prompt, subject.words) for subject in subjects if subject.words != AUTO]
    logits = matcher.logits(images, [*phrases, *nouns])
    count = len(phrases)
    used = [phrase for own in given for phrase in own]
    choices = iter(choose_words(prompt, phrases, logits[:, :count], nouns, logits[:, count:], used))
    return [
        dataclasses.replace(subject, words=next(choices).words, match_case=False)
        if subject.words == AUTO
        else subject
        for subject in subjects
    ]
