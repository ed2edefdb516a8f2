"""From an example of the data set to the arrays a training step takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from realcustom_jax.data.tokenize import tokenize
from realcustom_jax.data.transforms import augment_reference, center_crop_resize
from realcustom_jax.data.views import reference_views
from realcustom_jax.training.curriculum import Curriculum


@dataclasses.dataclass(frozen=True)
class MakeExample:
    """{"image", "caption", "index"} → "image" (H, W, 3), "ids" int32 (E, L)[, "reference" (V, S, S, 3) …].

    With `empty_text` the caption's stored features take the place of "ids".
    An example of an aspect-ratio bucket has its "shape", the (H, W) of its batch. One with stored latents has
    "mean" and "log_variance", which take the place of "image"; its own image is for the reference alone.
    The "flag", one number, is 0 for an example that trains the text alone, as if it had no subject, else 1.

    Attributes:
      tokenizers: for the captions, one for each of E text encoders.
      image_size: side of the training image in pixels, where it has no "shape".
      reference_size: side of the reference's views in pixels; None for stages without one.
      high_res: whether the reference has RealCustom++'s five views, see `reference_views`.
      batch_size: to know the step, which the curriculum needs.
      curriculum: augmentation of the reference by step.
      drop_text, drop_image, drop_both: shares of examples with an empty caption, a black reference, or both.
      text_only: share of examples, drawn independently, whose flag is 0.
      empty_text: stored features of an empty caption, where examples have those of theirs; else None.
    """

    tokenizers: Sequence[PreTrainedTokenizerBase]
    image_size: int
    reference_size: int | None
    high_res: bool
    batch_size: int
    curriculum: Curriculum
    drop_text: float
    drop_image: float
    drop_both: float
    text_only: float
    empty_text: Mapping[str, np.ndarray] | None = None

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
        strength = self.curriculum.strength(example["index"] // self.batch_size)
        reference = augment_reference(image, rng, strength)
        reference = reference_views(reference, self.reference_size, self.high_res)
        flag = np.float32(rng.random() >= self.text_only)
        reference = reference * np.uint8(not no_image)
        return {**learned, **text, "reference": reference, "flag": flag}

    def _text(self, example: dict[str, Any], dropped: bool) -> dict[str, np.ndarray]:
        if self.empty_text is not None:
            return {name: empty if dropped else example[name] for name, empty in self.empty_text.items()}
        caption = "" if dropped else example["caption"]
        return {"ids": np.concatenate([tokenize(tokenizer, caption) for tokenizer in self.tokenizers])}
