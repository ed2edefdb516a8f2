"""The pipeline's own text and image encoder as a `Matcher`, where they were trained as a pair."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.data.nouns import NOUNS
from realcustom_jax.data.tokenize import tokenize
from realcustom_jax.data.transforms import center_crop_resize, to_float
from realcustom_jax.errors import UserError
from realcustom_jax.matching import vocabulary
from realcustom_jax.models.family import Models
from realcustom_jax.pipeline import Pipeline

# Texts are encoded so many at a time, images one by one: no count compiles another program.
TEXTS = 32


@dataclasses.dataclass(frozen=True)
class OwnPair:
    """The encoders of a pipeline compare its images with its texts.

    Attributes:
      pipe: the pipeline.
      template: the sentence around a phrase. Bare words are rare in captions, so it says what a reference
        is; `benchmarks/auto_words.py` compares it with others.

    Raises:
      UserError: for a pipeline whose encoders are no pair.
    """

    pipe: Pipeline
    template: str = "a {} on a plain background"

    def __post_init__(self):
        towers = self.pipe.models.image_configs
        if not (towers and towers[0].text_paired):
            raise UserError(
                "this model's image encoder cannot tell which words a reference image shows: "
                'give the words of each subject instead of "auto"'
            )

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """As in `matching.Matcher`: (images, phrases)."""
        pipe, config = self.pipe, self.pipe.models.image_configs[0]
        pictures = np.stack([to_float(center_crop_resize(image, config.image_size)) for image in images])
        encode = functools.partial(_image_direction, pipe.models, pipe.params["image_encoder"])
        image_rows = np.concatenate([encode(picture[None]) for picture in pictures])
        ids = tokenize(pipe.tokenizers[0], [self.template.format(phrase) for phrase in phrases])
        padded = np.pad(ids, ((0, -len(ids) % TEXTS), (0, 0)), mode="edge")
        encode = functools.partial(_text_direction, pipe.models, pipe.params["text_encoder"])
        chunks = [encode(padded[i : i + TEXTS]) for i in range(0, len(padded), TEXTS)]
        return config.logit_scale * image_rows @ np.concatenate(chunks)[: len(ids)].T

    def vocabulary(self) -> list[str]:
        """The nouns that this model's tokenizer knows."""
        return vocabulary([len(self.pipe.tokenizers[0].tokenize(noun)) == 1 for noun in NOUNS])


@functools.partial(jax.jit, static_argnums=0)
def _image_direction(models: Models, params: Any, images: Array) -> Array:
    return _unit(models.image_encoders["image_encoder"].apply({"params": params}, images).pooled)


@functools.partial(jax.jit, static_argnums=0)
def _text_direction(models: Models, params: Any, ids: Array) -> Array:
    return _unit(models.text_encoders["text_encoder"].apply({"params": params}, ids).pooled)


def _unit(x: Array) -> Array:
    return x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
