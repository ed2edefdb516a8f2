"""Image and text encoders that were trained as a pair (CLIP), to compare images with texts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.chunks import in_chunks
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.inputs import preprocess
from realcustom_jax.inputs.matching import Rules, vocabulary
from realcustom_jax.inputs.nouns import NOUNS
from realcustom_jax.inputs.tokenize import load_tokenizer, tokenize
from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig
from realcustom_jax.models.family import Models
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.vit import ViT
from realcustom_jax.weights.components import find_weights, on_device, read_config, read_params
from realcustom_jax.weights.configs import read_text
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.layouts import CLIP_TEXT, FLAX_TEXT
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import load_tower

# Sentence templates for a word. The toybox was trained on captions instead of single words, so its sentence
# describes a reference photo; `studies/auto_words.py` compares it with others. CLIP's sentence is from its
# paper.
OWN_TEMPLATE = "a {} on a plain background"
CLIP_TEMPLATE = "a photo of a {}"

# A general vocabulary has several words for one thing ("dog", "puppy"), which share its probability. Neither
# number was measured with a real CLIP; `studies/auto_words.py` does it.
RULES = Rules(margin=2.0, sure=0.5)


@dataclasses.dataclass(frozen=True)
class ImageTower:
    """An image tower and the preprocessing of its images.

    Attributes:
      module, params: the network.
      prepare: uint8 (H, W, 3) → float32 (S, S, 3) in [-1, 1].
    """

    module: ViT
    params: Any
    prepare: Callable[[np.ndarray], np.ndarray]

    def directions(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Unit vectors (n, C) of the pooled class token; images are uint8 (H, W, 3) of any size."""
        encode = functools.partial(_pooled, self.module, self.params)
        (vectors,) = in_chunks(lambda rows: [encode(np.stack([self.prepare(x) for x in rows]))], images)
        return vectors


@dataclasses.dataclass(frozen=True)
class TextTower:
    """A text tower and its tokenizer."""

    module: CLIPText
    params: Any
    tokenizer: PreTrainedTokenizerBase

    def directions(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, C) of the pooled end token. Texts that are too long are truncated."""
        encode = functools.partial(_pooled, self.module, self.params)
        (vectors,) = in_chunks(lambda rows: [encode(tokenize(self.tokenizer, rows))], texts)
        return vectors


@dataclasses.dataclass(frozen=True)
class EncoderPair:
    """An image tower and a text tower with a shared embedding space; a `matching.Matcher`.

    Attributes:
      image, text: the towers.
      logit_scale: factor on the cosine similarity (CLIP's: 100).
      template: format string of the sentence around a phrase.
      rules: when a word fits; see `matching.Rules`.
    """

    image: ImageTower
    text: TextTower
    logit_scale: float
    template: str
    rules: Rules = RULES

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """Scaled cosine similarities (images, phrases); see `matching.Matcher`."""
        texts = self.text.directions([self.template.format(phrase) for phrase in phrases])
        # (images, C) @ (C, phrases)
        return self.logit_scale * self.image.directions(images) @ texts.T

    def none(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """−inf (images,): no sentence describes the absence of all things."""
        return np.full(len(images), -np.inf)

    def vocabulary(self) -> list[str]:
        """The nouns that the tokenizer knows."""
        return vocabulary([len(self.text.tokenizer.tokenize(noun)) == 1 for noun in NOUNS])


def own_pair(
    models: Models, params: Any, tokenizers: Sequence[PreTrainedTokenizerBase], template: str = OWN_TEMPLATE
) -> EncoderPair | None:
    """The model's own encoders as a pair; None if its config does not say that they are one."""
    towers = models.image_configs
    if not (towers and towers[0].text_paired):
        return None

    def prepare(image: np.ndarray) -> np.ndarray:
        return to_signed(center_crop_resize(image, towers[0].image_size))

    image = ImageTower(models.image_encoders["image_encoder"], params["image_encoder"], prepare)
    text = TextTower(models.text_encoders["text_encoder"], params["text_encoder"], tokenizers[0])
    return EncoderPair(image, text, towers[0].logit_scale, template)


def load_pair(name: str | Path, template: str = CLIP_TEMPLATE) -> EncoderPair:
    """Load a complete CLIP model of transformers.

    Args:
      name: a folder or hub id, such as openai/clip-vit-base-patch32.
      template: see `EncoderPair`.

    Raises:
      UserError: if it is not a complete CLIP model, or its weights do not fit.
    """
    folder = find_folder(name)
    values = read_config(folder)
    if values.get("model_type") != "clip":
        raise UserError(f"{folder} has model_type {values.get('model_type')!r}: it is not a whole CLIP model")
    text = CLIPText(_text_config(values, str(folder)))
    shapes = param_shapes(text, jax.ShapeDtypeStruct((1, text.config.max_position_embeddings), np.int32))
    tensors = open_tensors(find_weights(folder))
    place = on_device(jnp.float32)
    text_tower = TextTower(
        text, read_params(tensors, (CLIP_TEXT, FLAX_TEXT), shapes, place), load_tokenizer(folder)
    )
    config, params = load_tower(folder, place)
    prepare = dataclasses.replace(preprocess.CLIP, short_side=config.image_size, crop=config.image_size)
    scale = float(np.exp(np.float64(tensors.read("logit_scale"))))  # CLIP stores its logarithm
    return EncoderPair(ImageTower(ViT(config), params, prepare), text_tower, scale, template)


def _text_config(values: dict[str, Any], source: str) -> CLIPTextConfig:
    # A complete CLIP names no architecture of its text tower, and may have projection_dim at the top only.
    inner = {**values.get("text_config", {}), "architectures": ["CLIPTextModelWithProjection"]}
    if "projection_dim" in values:
        inner["projection_dim"] = values["projection_dim"]
    return read_text(inner, source)


@functools.partial(jax.jit, static_argnums=0)
def _pooled(module: Any, params: Any, rows: Array) -> Array:
    """Pooled outputs as unit vectors (n, C) float32."""
    pooled = module.apply({"params": params}, rows).pooled.astype(jnp.float32)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
