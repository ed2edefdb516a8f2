"""A text and an image encoder that were trained as a pair (CLIP), as a `Matcher`."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from transformers import PreTrainedTokenizerBase

from realcustom_jax.data.nouns import NOUNS
from realcustom_jax.data.tokenize import load_tokenizer, tokenize
from realcustom_jax.data.transforms import center_crop_resize, to_float
from realcustom_jax.errors import UserError
from realcustom_jax.matching import vocabulary
from realcustom_jax.models.clip_text import CLIPText
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.vit import ViT
from realcustom_jax.weights.components import find_weights, on_host, read_config, read_params
from realcustom_jax.weights.configs import read_text
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.layouts import CLIP_TEXT
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import load_tower

# Texts are encoded so many at a time, images one by one: no count compiles another program.
TEXTS = 32

# The toybox's captions know no bare words, so its sentence says what a reference photo is;
# `benchmarks/auto_words.py` compares it with others. CLIP's is the one of its paper.
OWN_TEMPLATE = "a {} on a plain background"
CLIP_TEMPLATE = "a photo of a {}"


@dataclasses.dataclass(frozen=True)
class EncoderPair:
    """Encoders that compare images with texts.

    Attributes:
      text, image: the modules; their pooled outputs are of one space.
      text_params, image_params: their `params` trees.
      tokenizer: of the text encoder.
      logit_scale: factor on the cosine similarity (CLIP's: 100).
      template: the sentence around a phrase.
    """

    text: CLIPText
    image: ViT
    text_params: Any
    image_params: Any
    tokenizer: PreTrainedTokenizerBase
    logit_scale: float
    template: str

    def image_directions(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings of length 1, (images, C); images are uint8 (H, W, 3), of any size.

        As CLIP prepares them: the short side resized, the centre cropped.
        """
        size = self.image.config.image_size
        pictures = [to_float(center_crop_resize(image, size))[None] for image in images]
        return np.concatenate([_direction(self.image, self.image_params, one) for one in pictures])

    def text_directions(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, (texts, C)."""
        ids = tokenize(self.tokenizer, texts)
        padded = np.pad(ids, ((0, -len(ids) % TEXTS), (0, 0)), mode="edge")
        chunks = [
            _direction(self.text, self.text_params, padded[i : i + TEXTS])
            for i in range(0, len(padded), TEXTS)
        ]
        return np.concatenate(chunks)[: len(ids)]

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """As in `matching.Matcher`: (images, phrases)."""
        texts = [self.template.format(phrase) for phrase in phrases]
        return self.logit_scale * self.image_directions(images) @ self.text_directions(texts).T

    def vocabulary(self) -> list[str]:
        """The nouns that the tokenizer knows."""
        return vocabulary([len(self.tokenizer.tokenize(noun)) == 1 for noun in NOUNS])


def own_pair(
    models: Models, params: Any, tokenizers: Sequence[PreTrainedTokenizerBase], template: str = OWN_TEMPLATE
) -> EncoderPair:
    """A model's own encoders, where its config says that they are a pair.

    Raises:
      UserError: for a model whose encoders are none.
    """
    towers = models.image_configs
    if not (towers and towers[0].text_paired):
        raise UserError(
            "this model's image encoder cannot tell which words a reference image shows: give the words of "
            'each subject instead of "auto", or load the model with a CLIP to tell them (matcher)'
        )
    text, image = models.text_encoders["text_encoder"], models.image_encoders["image_encoder"]
    return EncoderPair(
        text, image, params["text_encoder"], params["image_encoder"], tokenizers[0], towers[0].logit_scale,
        template,
    )  # fmt: skip


def load_pair(name: str | Path, template: str = CLIP_TEMPLATE) -> EncoderPair:
    """A whole CLIP of transformers, with its tokenizer: a folder or a hub id.

    Raises:
      UserError: when it is no CLIP, or its weights do not fit.
    """
    folder = find_folder(name)
    values = read_config(folder)
    if values.get("model_type") != "clip":
        raise UserError(f"{folder} is of type {values.get('model_type')!r}; a matcher is a whole CLIP model")
    text = CLIPText(_text_config(values, str(folder)))
    shapes = param_shapes(text.init, jax.ShapeDtypeStruct((1, text.config.max_position_embeddings), np.int32))
    tensors = open_tensors(find_weights(folder))
    place = on_host(np.float32)
    text_params = read_params(tensors, (CLIP_TEXT,), shapes, place)
    config, image_params = load_tower(folder, place)
    scale = float(np.exp(np.float64(tensors.read("logit_scale"))))
    return EncoderPair(
        text,
        ViT(config),
        *jax.device_put((text_params, image_params)),
        load_tokenizer(folder),
        scale,
        template,
    )


def _text_config(values: dict[str, Any], source: str) -> Any:
    inner = {**values.get("text_config", {}), "architectures": ["CLIPTextModelWithProjection"]}
    if "projection_dim" in values:
        inner["projection_dim"] = values["projection_dim"]
    return read_text(inner, source)


@functools.partial(jax.jit, static_argnums=0)
def _direction(module: CLIPText | ViT, params: Any, x: Array) -> Array:
    pooled = module.apply({"params": params}, x).pooled.astype(jnp.float32)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
