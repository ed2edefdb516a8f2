"""Transforms from an example of the data set to the arrays of a training step."""

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
from realcustom_jax.training.scopes import scopes

# So that a subject beside others is learned without references for these too.
FEWER = 0.25


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """The config's `curriculum` section: strength of the reference's augmentation over training.

    The strength is linear from `start` to `end`, between the steps `begin` and `finish`. 0 leaves the image
    unchanged, 1 is the widest range.
    """

    start: float = option(0.0, "initial strength of the reference's augmentation", low=0, high=1)
    end: float = option(1.0, "final strength of the reference's augmentation", low=0, high=1)
    begin: int = option(0, "step at which the strength starts to change", int, low=0, high=LAST_STEP)
    finish: int = option(20_000, "step at which it reaches the final strength", int, low=0, high=LAST_STEP)

    def strength(self, step: int) -> float:
        """Strength at a step, 0 to 1."""
        share = (step - self.begin) / max(self.finish - self.begin, 1)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """Transform of the stages vae, clip, base and customize.

    Input: a mapping with "image" uint8 (H, W, 3), "caption" and "index". In an aspect-ratio bucket it also
    has "shape", the (H, W) of its batch; with stored latents it has "mean" and "log_variance".

    Output, all numpy arrays:
      "image" uint8 (H, W, 3), or the stored "mean" and "log_variance" instead;
      "ids" int32 (E, L), or the stored text features instead;
      "reference" uint8 (R, V, S, S, 3), if there is a `reference_size`; black in empty slots;
      "flag" float32 (R,): 1 for a subject, 0 for an empty slot, and in an example that trains the text alone;
      "region" uint8 (R, h, w): how much of each latent a subject covers, 255 for all of it; 0 everywhere if
      there is no reference or the flag is 0;
      "scope" uint8 (R, h, w), if R is above 1: where each subject acts, see `scopes`.

    Attributes:
      tokenizers: one for each of the E text encoders.
      image_size: side of the training image in pixels, if it has no "shape".
      reference_size: side of the reference views in pixels; None for stages without a reference.
      high_res, fit: options of `reference_views`.
      region_downscale: image pixels per latent, for "region" and "scope"; None for neither.
      batch_size: images per step, which converts an example's index to its step for the curriculum.
      of_subject: whether the reference is a marked subject, cut out of the training image (see
        `data.cut_outs`), instead of the whole image. It is black if the training image shows no subject.
      subjects: R, the most marked subjects that are references at once. A share `FEWER` of the examples has
        fewer references than it could.
      curriculum: strength of the reference's augmentation by step.
      drop_text, drop_image, drop_both: shares of examples with an empty caption, a black reference, or both.
      text_only: share of examples whose flag is 0, drawn independently.
      empty_text: stored features of an empty caption; None if text features are not stored.
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
    subjects: int = 1

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        # One draw decides between the three kinds of dropout, so that their shares add up and never overlap.
        draw = rng.random()
        no_both = draw < self.drop_both
        no_text = no_both or draw < self.drop_both + self.drop_text
        no_image = (
            no_both
            or self.drop_both + self.drop_text <= draw < self.drop_both + self.drop_text + self.drop_image
        )
        text = self._text(example, no_text)
        # With stored latents the image itself is decoded only for the reference.
        stored = {name: example[name] for name in ("mean", "log_variance") if name in example}
        if stored and self.reference_size is None:
            return {**stored, **text}
        image = center_crop_resize(example["image"], example.get("shape", self.image_size))
        learned = stored or {"image": image}
        if self.reference_size is None:
            return {**learned, **text}
        shown = self._references(example, image, rng)
        if not shown:  # the crop cut the subjects away
            shown, no_image = [(image, np.zeros(image.shape[:2], bool))], True
        size, views = self.reference_size, 5 if self.high_res else 1
        reference = np.zeros((self.subjects, views, size, size, 3), np.uint8)
        for r, (photo, _) in enumerate(shown):
            reference[r] = reference_views(photo, size, self.high_res, self.fit) * np.uint8(not no_image)
        # A second draw: `text_only` is independent of the dropout above.
        flag = (np.arange(self.subjects) < len(shown)) * np.float32(rng.random() >= self.text_only)
        made = {**learned, **text, "reference": reference, "flag": flag.astype(np.float32)}
        if self.region_downscale is not None:
            masks = [mask for _, mask in shown]
            acts = np.uint8(not no_image) * flag.astype(np.uint8)[:, None, None]
            made["region"] = self._on_latents(masks) * acts
            if self.subjects > 1:
                made["scope"] = self._on_latents(scopes(masks, rng))
        return made

    def _references(
        self, example: Mapping[str, Any], image: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """References with their regions in the image, bool (H, W); empty if it shows no subject."""
        # "index" counts examples over all epochs, so a resumed loader continues at the right strength.
        strength = self.curriculum.strength(example["index"] // self.batch_size)
        if not self.of_subject:
            return [(augment_reference(image, rng, strength), np.ones(image.shape[:2], bool))]
        assert self.reference_size is not None
        side = self.reference_size * (2 if self.high_res else 1)  # local views are cut from twice the size
        most = self.subjects
        if most > 1 and rng.random() < FEWER:
            most = int(rng.integers(1, most))
        found = _cut_outs(example, image, side, rng, most)
        return [(vary_cut_out(subject, rng, strength), mask) for _, subject, mask in found]

    def _on_latents(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Masks, each bool (H, W), → uint8 (R, h, w); 0 in empty slots."""
        assert self.region_downscale is not None
        shrunk = [shrink_mask(mask, self.region_downscale) for mask in masks]
        empty = [np.zeros_like(shrunk[0])] * (self.subjects - len(shrunk))
        return np.stack([*shrunk, *empty])

    def _text(self, example: dict[str, Any], dropped: bool) -> dict[str, np.ndarray]:
        """The caption's ids (E, L), or its stored features."""
        if self.empty_text is not None:
            return {name: empty if dropped else example[name] for name, empty in self.empty_text.items()}
        caption = "" if dropped else example["caption"]
        return {"ids": np.concatenate([tokenize(tokenizer, caption) for tokenizer in self.tokenizers])}


@dataclasses.dataclass(frozen=True)
class MakeViews:
    """Transform of the stage instance: two photos of one marked subject, and a number that identifies it.

    Input: a mapping with "key", "image" and "metadata".
    Output: "views" uint8 (2, S, S, 3), and "subject" int32 (), the same number whenever the subject returns.

    Attributes:
      size: S, side of the views in pixels.
      first: always take the first marked subject, as batches of one word need.
    """

    size: int
    first: bool

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        found = _cut_outs(example, example["image"], self.size, rng, 1, self.first)
        if not found:
            raise UserError(f"the example '{example['key']}' marks subjects that are too small to cut out")
        number, subject, _ = found[0]
        # A checksum, because `hash` differs between the loader's processes.
        name = f"{example['key']}/{number}".encode()
        views = np.stack([vary_cut_out(subject, rng, 1.0) for _ in range(2)])
        return {"views": views, "subject": np.int32(zlib.crc32(name) & 0x7FFFFFFF)}


def _cut_outs(
    example: Mapping[str, Any],
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    most: int,
    first: bool = False,
) -> list[tuple[int, Image.Image, np.ndarray]]:
    """Cut marked subjects out of `image`, a crop of the example's picture.

    Args:
      example: with "key", "image" and "metadata".
      image: uint8 (H, W, 3).
      size: side of a cut-out in pixels.
      rng: chooses among the subjects that the crop shows.
      most: number of subjects, unless the crop shows fewer.
      first: try the first marked subject only.

    Returns:
      For each the subject's number, its cut-out as RGBA (size, size), and its mask in the crop, bool (H, W).
    """
    entries, key = marks(example), example["key"]
    picture, crop = example["image"].shape[:2], image.shape[:2]
    found: list[tuple[int, Image.Image, np.ndarray]] = []
    # A random order instead of a random choice, because the crop may have removed some subjects.
    order = rng.permutation(len(entries))
    for number in [0] if first else order:
        mask = cropped_mask(marked_mask(entries[number], key), picture, crop, key)
        if mask.any():
            found.append((int(number), cut_out(image, mask, size), mask))
        if len(found) == most:
            break
    return found
