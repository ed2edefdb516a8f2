"""Image towers from their own folders (transformers or timm), at the image size that a model needs."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.vit import ViT, ViTConfig
from realcustom_jax.weights.components import LAYOUTS, find_weights, misfits, open_params, read_config
from realcustom_jax.weights.configs import read_tower_folder
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.lazy import Place, place_params
from realcustom_jax.weights.tensors import open_tensors

_POSITIONS = "vision_model/embeddings/position_embedding/embedding"


def tower_shapes(config: ViTConfig) -> Any:
    """Shapes of a tower's `params` tree."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    return param_shapes(ViT(config), pixels)


def read_tower(folder: Path) -> ViTConfig:
    """Config of the tower in a folder, with the image size that it was trained with."""
    return read_tower_folder(folder, read_config(folder), open_tensors(find_weights(folder)))


def load_tower(folder: Path, place: Place) -> tuple[ViTConfig, Any]:
    """Load a tower: its config and its parameters, placed by `place`; see `open_tower`."""
    config, params = open_tower(folder)
    return config, place_params(params, place)


def open_tower(folder: Path, image_size: int | None = None) -> tuple[ViTConfig, Any]:
    """Open a tower: its config and its lazy parameters.

    Args:
      folder: folder with `config.json` and weights.
      image_size: side of the input images in pixels; default: as trained. If it gives another patch grid,
        the position embeddings are resampled.

    Returns:
      the config, with class and register tokens in transformers' form, and the parameters.

    Raises:
      UserError: the folder has another kind of network, or its weights do not fit.
    """
    trained = read_tower(folder)
    config = dataclasses.replace(trained, image_size=image_size or trained.image_size, position_prefix=True)
    if config.image_size < config.patch_size:
        raise UserError(
            f"image_size {config.image_size} is smaller than the patches of the tower in {folder}"
        )
    tensors = open_tensors(find_weights(folder))
    with misfits(f"{folder / 'config.json'}"):
        shapes, new_shape = tower_shapes(trained), flatten(tower_shapes(config))[_POSITIONS].shape
    params = flatten(open_params(tensors, LAYOUTS["image_encoder"], shapes))
    params[_POSITIONS] = params[_POSITIONS].map(
        lambda value: fit_positions(value, trained, config), new_shape
    )
    return config, unflatten(params)


def fit_positions(positions: np.ndarray, trained: ViTConfig, target: ViTConfig) -> np.ndarray:
    """Resample position embeddings (n, C) to another patch grid, as timm does.

    timm uses bicubic interpolation with antialiasing and half-pixel centres, in float32.
    """
    old, new = (config.image_size // config.patch_size for config in (trained, target))
    prefix = positions[: len(positions) - old * old]
    # timm's DINOv2 with registers has no position for the class token; zeros change nothing.
    if target.class_token and target.position_prefix and not len(prefix):
        prefix = np.zeros_like(positions[:1])
    grid = positions[len(positions) - old * old :]
    if new != old:
        # (old², C) → (old, old, C) → (new, new, C) → (new², C)
        square = grid.astype(np.float32).reshape(old, old, -1)
        resized = jax.image.resize(square, (new, new, square.shape[-1]), "cubic", antialias=True)
        grid = np.asarray(resized, np.float32).reshape(new * new, -1).astype(positions.dtype)
    return np.concatenate([prefix, grid])


def without_class_position(config: ViTConfig, params: Any) -> Any:
    """Parameters in timm's form: with registers, DINOv2's class token includes its position embedding."""
    if not (config.class_token and config.registers and config.position_prefix):
        return params
    flat = flatten(params)
    token, positions = "vision_model/embeddings/class_embedding", np.asarray(flat[_POSITIONS])
    flat[token] = np.asarray(flat[token]) + positions[0]
    flat[_POSITIONS] = positions[1:]
    return unflatten(flat)
