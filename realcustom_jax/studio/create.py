"""The Create tab without its layout: a filled-in form → images, masks over them, and proposed words."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.generate import sample
from realcustom_jax.inputs.characters import LONGEST_TEXT
from realcustom_jax.inputs.encode import resolve_auto_words
from realcustom_jax.inputs.requests import Request
from realcustom_jax.inputs.subjects import AUTO, Subject
from realcustom_jax.outputs.samples import Samples
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.studio.fields import box_of, seed_of, uploads_named
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.limits import check_size

MOST_REFERENCES = 4
MOST_IMAGES = 4
LONGEST_PROMPT = 2000
# Steps between previews.
EVERY = 5
# One colour per subject, which differ also for colour-blind people (Okabe and Ito).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))


@dataclasses.dataclass(frozen=True)
class Reference:
    """The fields of one reference.

    Attributes:
      photo: path of the picture.
      word: the word of the prompt that it narrows; empty or "auto": it is chosen.
      face: the face box as text.
      face_strength, body_strength: see `Subject`.
    """

    photo: str
    word: str = ""
    face: str = ""
    face_strength: float = 1.0
    body_strength: float = 1.0

    @property
    def is_auto(self) -> bool:
        """Whether the word is chosen."""
        return (self.word or "").strip() in ("", AUTO)

    def subject(self) -> Subject:
        """The subject of a request."""
        words = AUTO if self.is_auto else " ".join(self.word.split())
        if len(words) > LONGEST_TEXT:
            raise UserError(f"a word has {len(words)} characters; at most {LONGEST_TEXT} are allowed")
        return Subject(
            self.photo,
            words,
            face=box_of(self.face),
            face_strength=1.0 if self.face_strength is None else self.face_strength,
            body_strength=1.0 if self.body_strength is None else self.body_strength,
        )


@dataclasses.dataclass(frozen=True)
class Form:
    """The fields of a request.

    Attributes:
      prompt, negative_prompt: texts.
      references: those that have a picture.
      seed: seed of the first image, as text; the others follow.
      count: number of images.
      options: sampling options that differ from the model's defaults.
    """

    prompt: str
    references: Sequence[Reference] = ()
    seed: Any = "0"
    count: int = 1
    negative_prompt: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def photos(self) -> list[str]:
        """The paths of the pictures."""
        return [reference.photo for reference in self.references]

    def checked_prompt(self) -> str:
        """The prompt, checked; it may be empty if the word of a reference will be written into it."""
        return check_prompt(self.prompt, any(reference.is_auto for reference in self.references))

    def subjects(self) -> list[Subject]:
        """The subjects, checked."""
        if len(self.references) > MOST_REFERENCES:
            raise UserError(
                f"there are {len(self.references)} references; at most {MOST_REFERENCES} are allowed"
            )
        return [reference.subject() for reference in self.references]

    def seeds(self) -> list[int]:
        """The seed of each image."""
        count = self.count if isinstance(self.count, int) and not isinstance(self.count, bool) else 0
        if not 1 <= count <= MOST_IMAGES:
            raise UserError(f"the number of images must be from 1 to {MOST_IMAGES}")
        first = seed_of(self.seed)
        return [seed_of((first + k) % 2**64) for k in range(count)]


def check_prompt(prompt: Any, may_be_empty: bool = False) -> str:
    """A prompt, checked for its type and length.

    Args:
      prompt: the prompt.
      may_be_empty: whether a word will be written into it.

    Raises:
      UserError: for an empty or too long one.
    """
    if not isinstance(prompt, str) or not (prompt.strip() or may_be_empty):
        raise UserError("the prompt is empty: describe the image, such as a bird on the beach")
    if len(prompt) > LONGEST_PROMPT:
        raise UserError(f"the prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are allowed")
    return prompt


def create(pipe: Pipeline, form: Form, report: Report) -> Samples:
    """Make the images of a form.

    Raises:
      UserError: for a mistake in the form.
      Stopped: if the user stopped it.
    """
    check_size(pipe, form.options)
    with uploads_named(*form.photos):
        return sample(
            pipe,
            form.checked_prompt(),
            form.subjects(),
            form.seeds(),
            negative_prompt=form.negative_prompt or "",
            progress=report.progress,
            preview=report.preview,
            every=EVERY,
            fast_preview=True,
            **form.options,
        )


def propose_words(pipe: Pipeline, prompt: str, references: Sequence[Reference]) -> tuple[str, list[str]]:
    """The prompt with the words that it lacks, and the word of each reference; those that were typed stay.

    Raises:
      UserError: if no word fits a picture.
    """
    form = Form(prompt, references)
    with uploads_named(*form.photos):
        request = resolve_auto_words(pipe, [Request(form.checked_prompt(), tuple(form.subjects()))])[0]
    words = [subject.words for subject in request.subjects]
    return request.prompt, [word if isinstance(word, str) else " | ".join(word or ()) for word in words]


def masks_over(samples: Samples, index: int) -> Image.Image:
    """One image, with the last mask of each subject as a colour over it."""
    image = samples.images[index].astype(np.float32)
    height, width = image.shape[:2]
    for number, mask in enumerate(samples.masks[index, -1] if samples.masks.shape[1] else ()):
        grey = Image.fromarray(np.asarray(np.round(np.clip(mask, 0, 1) * 255), np.uint8))
        weight = np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        colour = np.asarray(COLOURS[number % len(COLOURS)], np.float32)
        image = image + 0.6 * weight[..., None] * (colour - image)
    return Image.fromarray(np.round(image).astype(np.uint8))


def caption(samples: Samples, index: int) -> str:
    """A line below an image: its seed and the words of its subjects."""
    words = "; ".join(", ".join(words) for words in samples.words[index])
    return f"seed {samples.records[index].seed}" + (f" · {words}" if words else "")
