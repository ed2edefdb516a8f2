"""All modules of a text-to-image model with image conditioning, as one static object."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig
from realcustom_jax.models.config import RealCustomConfig, UNetConfig, from_mapping
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.projector import FEATURES
from realcustom_jax.models.scoring import InfluenceQuantity
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.vae import VAE, VAEConfig
from realcustom_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class Models:
    """The shapes of all parts, and the Flax modules made from them. Static and hashable; holds no arrays.

    `params` trees that go with it have one entry a component: unet, vae, text_encoder, image_encoder.
    """

    unet_config: UNetConfig
    vae_config: VAEConfig
    text_config: CLIPTextConfig
    image_config: ViTConfig
    realcustom: RealCustomConfig | None = None
    dtype: Any = jnp.float32

    @classmethod
    def from_configs(cls, configs: Mapping[str, Mapping[str, Any]], dtype: Any = jnp.float32) -> "Models":
        """From one mapping for each component, named as the folders of a model folder are."""
        realcustom = configs.get("realcustom")
        return cls(
            from_mapping(UNetConfig, configs["unet"]),
            from_mapping(VAEConfig, configs["vae"]),
            from_mapping(CLIPTextConfig, configs["text_encoder"]),
            from_mapping(ViTConfig, configs["image_encoder"]),
            from_mapping(RealCustomConfig, realcustom) if realcustom else None,
            dtype,
        )

    @property
    def unet(self) -> UNet:
        return UNet(self.unet_config, self.realcustom, self.dtype)

    @property
    def vae(self) -> VAE:
        return VAE(self.vae_config, self.dtype)

    @property
    def text_encoder(self) -> CLIPText:
        return CLIPText(self.text_config, self.dtype)

    @property
    def image_encoder(self) -> ViT:
        return ViT(self.image_config, self.dtype)

    @property
    def vision_dim(self) -> int:
        """Channels of the image features that the projector takes."""
        own = self.realcustom.vision_dim if self.realcustom else None
        return own or self.image_config.hidden_size

    def param_shapes(self) -> dict[str, Any]:
        """{component: `params` tree as shapes}, without allocating anything."""
        vae, vision = self.vae_config, self.image_config
        side = 2 * vae.downscale
        ids = jax.ShapeDtypeStruct((1, self.text_config.max_position_embeddings), jnp.int32)
        return {
            "unet": unet_shapes(
                self.unet, self.text_config.max_position_embeddings, vision.tokens, self.vision_dim
            ),
            "vae": param_shapes(self.vae.init, _struct(1, side, side, 3)),
            "text_encoder": param_shapes(self.text_encoder.init, ids),
            "image_encoder": param_shapes(
                self.image_encoder.init, _struct(1, vision.image_size, vision.image_size, 3)
            ),
        }


def unet_shapes(unet: UNet, text_tokens: int, visual_tokens: int, vision_dim: int) -> Any:
    """The `params` tree of a UNet as shapes.

    Args:
      unet: with or without what RealCustom adds.
      text_tokens, visual_tokens: of a pass; no parameter depends on them.
      vision_dim: channels of the image features.
    """
    c, realcustom = unet.config, unet.realcustom
    features = quantity = pooled = time_ids = None
    if realcustom:
        features = (_struct(1, 1, visual_tokens, vision_dim),) * FEATURES[realcustom.projector]
        quantity = InfluenceQuantity(_struct(1), _struct(1), _struct(1))
    if c.addition_embed_type == "text_time":
        time_ids = _struct(1, 6)
        pooled = _struct(1, c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim)

    def encode_and_run(module, latents, t, text, features, pooled, time_ids, quantity):
        context = module.encode_context(text, features, pooled=pooled, time_ids=time_ids)
        return module(latents, t, context, quantity=quantity)

    return param_shapes(
        unet.init,
        _struct(1, c.divisor, c.divisor, c.in_channels),
        _struct(1),
        _struct(1, text_tokens, c.cross_attention_dim),
        features,
        pooled,
        time_ids,
        quantity,
        method=encode_and_run,
    )


def _struct(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
