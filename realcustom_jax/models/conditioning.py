"""Prompts and reference images → what the UNet's `encode_context` takes. Pure; `models` is static."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.family import Models
from realcustom_jax.models.vit import ViT


def to_signed(images: Array) -> Array:
    """uint8 (…, 3) → float32 in [-1, 1], what the VAE and the image towers take."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def encode_text(
    models: Models, params: Mapping[str, Any], ids: Sequence[Array]
) -> tuple[Array, Array | None]:
    """Text tokens f_t and, for SDXL, the pooled text.

    SD1.5 takes the last state of its encoder. SDXL takes the last states but one of both encoders side by
    side, and the projected end token of the second.

    Args:
      models, params: with `text_encoder` and, for SDXL, `text_encoder_2`.
      ids: (B, n_t) int32 token ids, one array for each text encoder.

    Returns:
      (B, n_t, C_t), and (B, C) or None.
    """
    outputs = [
        module.apply({"params": params[name]}, tokens)
        for (name, module), tokens in zip(models.text_encoders.items(), ids, strict=True)
    ]
    if models.unet_config.addition_embed_type != "text_time":
        return outputs[0].last, None
    return jnp.concatenate([output.penultimate for output in outputs], axis=-1), outputs[-1].pooled


def size_ids(batch: int, height: int, width: int) -> Array:
    """SDXL's `time_ids` (B, 6) of an image in pixels that is neither cropped nor resized."""
    return jnp.broadcast_to(jnp.asarray([height, width, 0, 0, height, width], jnp.float32), (batch, 6))


def encode_reference(models: Models, params: Mapping[str, Any], views: Array) -> tuple[Array, ...]:
    """Features of reference images, as the projector takes them.

    Args:
      models, params: with the image towers.
      views: uint8 (B, V, S, S, 3): the whole image and, for RealCustom++, the four of its 2×2 strided split;
        see `data.views.reference_views`.

    Returns:
      arrays (B, N, C) of the whole image, layer by layer, the towers side by side on the channels; for
      RealCustom++ then one (B, 4N, C) of the four others, those of each global patch next to each other.
    """
    layers = models.realcustom.feature_layers
    signed = to_signed(views)

    def encode(images: Array, layers: Sequence[tuple[int, ...]]) -> list[Array]:
        towers = [
            module.apply({"params": params[name]}, images, of_tower, method=ViT.features)
            for (name, module), of_tower in zip(models.image_encoders.items(), layers, strict=True)
        ]
        return [jnp.concatenate(states, axis=-1) for states in zip(*towers, strict=True)]

    whole = encode(signed[:, 0], layers)
    if not models.high_res:
        return tuple(whole)
    b, v, *image = signed.shape
    (local,) = encode(signed[:, 1:].reshape(b * (v - 1), *image), [of_tower[-1:] for of_tower in layers])
    return (*whole, interleave_local(local))


def interleave_local(features: Array) -> Array:
    """Features of the local views (4B, N, C) → (B, 4N, C), the four of each global patch side by side."""
    four_b, n, c = features.shape
    return features.reshape(four_b // 4, 4, n, c).swapaxes(1, 2).reshape(four_b // 4, 4 * n, c)
