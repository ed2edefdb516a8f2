"""From an example of the data set to the arrays a training step takes."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import LAST_STEP, option
from realcustom_jax.data.cut_outs import cropped_mask, cut_out, marked_mask, marks, shrink_mask, vary_cut_out
from realcustom_jax.inputs.tokenize import tokenize
from realcustom_jax.inputs.transforms import augment_reference, center_crop_resize
from realcustom_jax.inputs.views import reference_views


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Strength of the reference's augmentation: linear from `start` to `end` between two steps.

    A strength of 0 is the image itself, 1 the widest range. It is the config's `curriculum`.
    """

    start: float = option(0.0, "strength of the reference's augmentation at first", low=0, high=1)
    end: float = option(1.0, "its strength at last", low=0, high=1)
    begin: int = option(0, "step at which it begins to change", int, low=0, high=LAST_STEP)
    finish: int = option(20_000, "step from which it stays", int, low=0, high=LAST_STEP)

    def strength(self, step: int) -> float:
        share = (step - self.begin) / max(self.finish - self.begin, 1)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """{"image", "caption", "index"} → "image" (H, W, 3), "ids" int32 (E, L)[, "reference" (V, S, S, 3) …].

    With `empty_text` the caption's stored features take the place of "ids".
    An example of an aspect-ratio bucket has its "shape", the (H, W) of its batch. One with stored latents has
    "mean" and "log_variance", which take the place of "image"; its own image is for the reference alone.
    The "flag", one number, is 0 for an example that trains the text alone, as if it had no subject, else 1.
    The "region" (h, w) uint8 says how much of each latent the reference's subject covers, 255 for all of it;
    nothing where there is no reference or the text alone is trained.

    Attributes:
      tokenizers: for the captions, one for each of E text encoders.
      image_size: side of the training image in pixels, where it has no "shape".
      reference_size: side of the reference's views in pixels; None for stages without one.
      high_res, fit: of the reference's views, see `reference_views`.
      region_downscale: pixels of the training image by latent, to make the "region" of a subject; None for
        no region.
      batch_size: to know the step, which the curriculum needs.
      of_subject: whether the reference is one of the subjects that the example marks, cut out of the training
        image (see `data.cut_outs`), and not the whole of it. Black where the training image shows none.
      curriculum: augmentation of the reference by step.
      drop_text, drop_image, drop_both: shares of examples with an empty caption, a black reference, or both.
      text_only: share of examples, drawn independently, whose flag is 0.
      empty_text: stored features of an empty caption, where examples have those of theirs; else None.
    """

    tokenizers: Sequence[PreTrainedTokenizerBase]
    image_size: int
    reference_size: int | None
    high_res: bool
    of_subject: bool
    region_downscale: int | None
    batch_size: int
    curriculum: Curriculum
    drop_text: float
    drop_image: float
    drop_both: float
    text_only: float
    empty_text: Mapping[str, np.ndarray] | None = None
    fit: str | None = None

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        draw = rng.random()
        no_both = draw < self.drop_both
        no_text = no_both or draw < self.drop_both + self.drop_text
        no_image = (
            no_both
            or self.drop_both + self.drop_text <= draw < self.drop_both + self.drop_text + self.drop_image
        )
        text = self._text(example, no_text)
        stored = {name: example[name] for name in ("mean", "log_variance") if name in example}
        if stored and self.reference_size is None:
            return {**stored, **text}
        image = center_crop_resize(example["image"], example.get("shape", self.image_size))
        learned = stored or {"image": image}
        if self.reference_size is None:
            return {**learned, **text}
        reference, mask = self._reference(example, image, rng)
        if reference is None:  # the crop shows no subject whole
            reference, no_image = image, True
        views = reference_views(reference, self.reference_size, self.high_res, self.fit)
        flag = np.float32(rng.random() >= self.text_only)
        made = {**learned, **text, "reference": views * np.uint8(not no_image), "flag": flag}
        if self.region_downscale is not None:
            acts = np.uint8(flag and not no_image)
            made["region"] = shrink_mask(mask, self.region_downscale) * acts
        return made

    def _reference(
        self, example: Mapping[str, Any], image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """The photo, None where the image shows no subject; and what it is of, bool of the image's size."""
        strength = self.curriculum.strength(example["index"] // self.batch_size)
        if not self.of_subject:
            return augment_reference(image, rng, strength), np.ones(image.shape[:2], bool)
        side = self.reference_size * (2 if self.high_res else 1)
        subject, mask = _cut_out(example, image, side, rng)[1:]
        return None if subject is None else vary_cut_out(subject, rng, strength), mask

    def _text(self, example: dict[str, Any], dropped: bool) -> dict[str, np.ndarray]:
        if self.empty_text is not None:
            return {name: empty if dropped else example[name] for name, empty in self.empty_text.items()}
        caption = "" if dropped else example["caption"]
        return {"ids": np.concatenate([tokenize(tokenizer, caption) for tokenizer in self.tokenizers])}


@dataclasses.dataclass(frozen=True)
class MakeViews:
    """{"key", "image", "metadata"} → "views" uint8 (2, S, S, 3), photos of one of its marked subjects.

    And "subject", int32, a number that tells this subject from all others, also when it comes again.

    Attributes:
      size: S, side of the views in pixels.
      first: whether the subject is always the first that is marked, as for batches of one word.
    """

    size: int
    first: bool

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        number, subject, _ = _cut_out(example, example["image"], self.size, rng, self.first)
        if subject is None:
            raise UserError(f"the example '{example['key']}' marks subjects that are too small to cut out")
        name = f"{example['key']}/{number}".encode()
        views = np.stack([vary_cut_out(subject, rng, 1.0) for _ in range(2)])
        return {"views": views, "subject": np.int32(zlib.crc32(name) & 0x7FFFFFFF)}


def _cut_out(
    example: Mapping[str, Any],
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    first: bool = False,
) -> tuple[int, Image.Image | None, np.ndarray]:
    """The number of a subject that the crop `image` of the example's picture shows, one of several by chance.

    With it as RGBA (size, size), None when the crop shows none, with `first` of the first alone; and where it
    is in the crop, bool (H, W).
    """
    entries, key = marks(example), example["key"]
    picture, crop = example["image"].shape[:2], image.shape[:2]
    order = rng.permutation(len(entries))
    for number in [0] if first else order:
        mask = cropped_mask(marked_mask(entries[number], key), picture, crop, key)
        if mask.any():
            return int(number), cut_out(image, mask, size), mask
    return 0, None, np.zeros(crop, bool)
