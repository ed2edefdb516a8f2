"""Encodes prompts and reference images for the UNet: pure functions, in which `models` is static."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.pixels import to_signed
from realcustom_jax.models.family import Models
from realcustom_jax.models.vit import ViT


def encode_text(
    models: Models, params: Mapping[str, Any], ids: Sequence[Array]
) -> tuple[Array, Array | None]:
    """Text tokens f_t and, for SDXL, the pooled text.

    Args:
      models, params: with `text_encoder` and, for SDXL, `text_encoder_2`.
      ids: (B, n_t) int32 token ids, one array per text encoder.

    Returns:
      f_t (B, n_t, C_t), and the pooled text (B, C) or None.
    """
    outputs: list[Any] = [
        module.apply({"params": params[name]}, tokens)
        for (name, module), tokens in zip(models.text_encoders.items(), ids, strict=True)
    ]
    # SD1.5 was trained on the last state of its encoder. SDXL was trained on the penultimate states of both,
    # concatenated, and on the projected end token of the second.
    if models.unet_config.addition_embed_type != "text_time":
        return outputs[0].last, None
    return jnp.concatenate([output.penultimate for output in outputs], axis=-1), outputs[-1].pooled


def size_ids(batch: int, height: int, width: int) -> Array:
    """SDXL's `time_ids` (B, 6) of an uncropped, unresized image; height and width in pixels."""
    # original size, top left corner of the crop, target size (arXiv 2307.01952, section 2.2)
    return jnp.broadcast_to(jnp.asarray([height, width, 0, 0, height, width], jnp.float32), (batch, 6))


def encode_reference(models: Models, params: Mapping[str, Any], views: Array) -> tuple[Array, ...]:
    """Features of reference images, as the projector takes them.

    Args:
      models, params: with the image towers.
      views: uint8 (B, V, S, S, 3): the whole image and, for RealCustom++, the four parts of its 2×2 strided
        split; see `inputs.views.reference_views`.

    Returns:
      One array (B, N, C) per feature layer of the whole image; C are the channels of all towers,
      concatenated. For RealCustom++ also the local features (B, 4N, C), see `interleave_local`.
    """
    assert models.realcustom is not None
    layers = models.realcustom.feature_layers  # one tuple of layers per tower
    signed = to_signed(views)

    def encode(images: Array, layers: Sequence[tuple[int, ...]]) -> list[Array]:
        towers = [
            module.apply({"params": params[name]}, images, tower_layers, method=ViT.features)
            for (name, module), tower_layers in zip(models.image_encoders.items(), layers, strict=True)
        ]
        # per layer: (B, N, C_1), (B, N, C_2) → (B, N, C_1 + C_2)
        return [jnp.concatenate(states, axis=-1) for states in zip(*towers, strict=True)]

    whole = encode(signed[:, 0], layers)
    if not models.high_res:
        return tuple(whole)
    b, v, *image = signed.shape
    # (B, 4, S, S, 3) → (4B, S, S, 3). As published, local features come from the last feature layer only.
    (local,) = encode(
        signed[:, 1:].reshape(b * (v - 1), *image), [tower_layers[-1:] for tower_layers in layers]
    )
    return (*whole, interleave_local(local))


def interleave_local(features: Array) -> Array:
    """Order local features by global patch: (4B, N, C) → (B, 4N, C), the four parts of a patch adjacent."""
    four_b, n, c = features.shape
    # (4B, N, C) → (B, 4, N, C) → (B, N, 4, C) → (B, 4N, C)
    return features.reshape(four_b // 4, 4, n, c).swapaxes(1, 2).reshape(four_b // 4, 4 * n, c)
