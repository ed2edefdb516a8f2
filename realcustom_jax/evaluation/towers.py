"""The towers that metrics look through: images and texts → unit vectors."""

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

from realcustom_jax.data.tokenize import load_tokenizer, tokenize
from realcustom_jax.data.transforms import center_crop_resize, to_float
from realcustom_jax.errors import UserError
from realcustom_jax.evaluation import preprocess
from realcustom_jax.models.clip_text import CLIPText
from realcustom_jax.models.vit import ViT
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.weights.components import (
    find_weights,
    on_device,
    read_config,
    read_params,
)
from realcustom_jax.weights.configs import read_text
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.layouts import DIFFUSERS, Layout
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import load_tower

_CHUNK = 32  # rows that are encoded at once, so that no count compiles another program

# The text tower of a whole CLIP, beside its image tower.
_CLIP_TEXT = Layout(
    "transformers", DIFFUSERS.entries, r"^(vision_model\.|visual_projection\.|logit_scale$)|position_ids$"
)


@dataclasses.dataclass(frozen=True)
class ImageTower:
    """An image tower and how images get into it.

    Attributes:
      module, params: the network.
      prepare: uint8 (H, W, 3) → float32 (S, S, 3) in [-1, 1].
    """

    module: ViT
    params: Any
    prepare: Callable[[np.ndarray], np.ndarray]

    def directions(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors (n, C) of the pooled class token; images are uint8 (H, W, 3), of any sizes."""
        encode = functools.partial(_pooled, self.module, self.params)
        return _in_chunks(lambda rows: encode(np.stack([self.prepare(image) for image in rows])), images)


@dataclasses.dataclass(frozen=True)
class TextTower:
    """A text tower and its tokenizer."""

    module: CLIPText
    params: Any
    tokenizer: PreTrainedTokenizerBase

    def directions(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, C) of the pooled end token. Texts beyond the tower's length lose their end."""
        encode = functools.partial(_pooled, self.module, self.params)
        return _in_chunks(lambda rows: encode(tokenize(self.tokenizer, rows)), texts)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and a text tower with a space in common."""

    image: ImageTower
    text: TextTower


def load_clip(path: str | Path) -> Pair:
    """A whole CLIP of transformers, for example openai/clip-vit-base-patch32: a folder or hub id.

    Raises:
      UserError: for another kind of folder, or when weights do not fit.
    """
    folder = find_folder(path)
    config, params = load_tower(folder, on_device(jnp.float32))
    values = read_config(folder)
    if "text_config" not in values or config.projection_dim is None:
        raise UserError(f"{folder} is no whole CLIP model: it must have a text tower and projections")
    text = read_text(
        {
            **values["text_config"],
            "projection_dim": config.projection_dim,
            "architectures": ["CLIPTextModelWithProjection"],
        },
        str(folder),
    )
    module = CLIPText(text)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    tensors = open_tensors(find_weights(folder))
    text_params = read_params(tensors, (_CLIP_TEXT,), shapes, on_device(jnp.float32))
    size = config.image_size
    prepare = dataclasses.replace(preprocess.CLIP, short_side=size, crop=size)
    tokenizer = load_tokenizer(folder)
    return Pair(ImageTower(ViT(config), params, prepare), TextTower(module, text_params, tokenizer))


def own_pair(pipe: Pipeline) -> Pair | None:
    """A pipeline's own towers, where they were trained as a pair; images are cropped and resized to fit."""
    towers = pipe.models.image_configs
    if not (towers and towers[0].text_paired):
        return None

    def prepare(image: np.ndarray) -> np.ndarray:
        return to_float(center_crop_resize(image, towers[0].image_size))

    models, params = pipe.models, pipe.params
    image = ImageTower(models.image_encoders["image_encoder"], params["image_encoder"], prepare)
    text = TextTower(models.text_encoders["text_encoder"], params["text_encoder"], pipe.tokenizers[0])
    return Pair(image, text)


@functools.partial(jax.jit, static_argnums=0)
def _pooled(module: Any, params: Any, rows: Array) -> Array:
    pooled = module.apply({"params": params}, rows).pooled.astype(jnp.float32)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def _in_chunks(encode: Callable[[Sequence[Any]], Array], rows: Sequence[Any]) -> np.ndarray:
    """`_CHUNK` rows at a time, the last ones filled up with the last row."""
    parts = []
    for start in range(0, len(rows), _CHUNK):
        chunk = list(rows[start : start + _CHUNK])
        parts.append(np.asarray(encode(chunk + chunk[-1:] * (_CHUNK - len(chunk))))[: len(chunk)])
    return np.concatenate(parts)
