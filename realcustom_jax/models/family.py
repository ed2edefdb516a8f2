"""All modules of a text-to-image model with subjects, as one static object."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig
from realcustom_jax.models.config import HIGH_RES, RealCustomConfig, UNetConfig, from_mapping
from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.projector import FEATURES
from realcustom_jax.models.scoring import TokenSelection
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.vae import VAE, VAEConfig
from realcustom_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class Models:
    """Configs of all components, and the Flax modules made from them. Static and hashable; holds no arrays.

    A matching `params` tree has one entry per component of the model. The names are those of the folders of a
    model folder: unet, vae, text_encoder, text_encoder_2, image_encoder, image_encoder_2.

    Attributes:
      unet_config, vae_config: configs of the base.
      text_configs: one text encoder (SD1.5) or two (SDXL).
      image_configs: no image tower (a base without subjects), one, or two (RealCustom++).
      realcustom: config of the parts added to the base, or None.
      dtype: compute dtype.
      remat: rematerialisation of the UNet in training; see `remat.POLICIES`.
      flash: kernel for self-attention over many pixels, or None; see `flash_attention`.
      scan: whether the blocks of a transformer of the UNet run as a loop; see `Transformer2D`.
      vae_dtype: compute dtype of the VAE; None for `dtype`.

    Raises:
      UserError: if two components do not fit each other.
    """

    unet_config: UNetConfig
    vae_config: VAEConfig
    text_configs: tuple[CLIPTextConfig, ...]
    image_configs: tuple[ViTConfig, ...] = ()
    realcustom: RealCustomConfig | None = None
    dtype: Any = jnp.float32
    remat: str = "none"
    flash: FlashAttention | None = None
    scan: bool = False
    vae_dtype: Any = None

    def __post_init__(self):
        # SDXL concatenates the tokens of both text encoders on the channels.
        width = sum(config.hidden_size for config in self.text_configs)
        if width != self.unet_config.cross_attention_dim:
            raise UserError(
                f"the UNet attends to text of {self.unet_config.cross_attention_dim} channels, but the text "
                f"encoders give {width}"
            )
        if self.unet_config.addition_embed_type == "text_time" and not self.text_configs[-1].with_projection:
            raise UserError(
                "this UNet needs the pooled text, so the last text encoder must have a projection"
            )
        if self.realcustom:
            _check_towers(self.image_configs, self.realcustom)

    @classmethod
    def from_configs(cls, configs: Mapping[str, Mapping[str, Any]], dtype: Any = jnp.float32) -> "Models":
        """Make `Models` from {component: fields of its config}."""
        realcustom = configs.get("realcustom")
        return cls(
            from_mapping(UNetConfig, configs["unet"], "unet"),
            from_mapping(VAEConfig, configs["vae"], "vae"),
            tuple(from_mapping(CLIPTextConfig, configs[name], name) for name in TEXT if name in configs),
            tuple(from_mapping(ViTConfig, configs[name], name) for name in IMAGE if name in configs),
            from_mapping(RealCustomConfig, realcustom, "realcustom") if realcustom else None,
            dtype,
        )

    @property
    def unet(self) -> UNet:
        return UNet(self.unet_config, self.realcustom, self.dtype, self.remat, self.flash, self.scan)

    @property
    def vae(self) -> VAE:
        return VAE(self.vae_config, self.vae_dtype or self.dtype, self.flash)

    @property
    def text_encoders(self) -> dict[str, CLIPText]:
        """{component: module}."""
        return {
            name: CLIPText(config, self.dtype) for name, config in zip(TEXT, self.text_configs, strict=False)
        }

    @property
    def image_encoders(self) -> dict[str, ViT]:
        """{component: module}."""
        return {
            name: ViT(config, self.dtype) for name, config in zip(IMAGE, self.image_configs, strict=False)
        }

    @property
    def configs(self) -> dict[str, Any]:
        """{component: config} of all components; without `realcustom`, whose parameters are in the UNet."""
        return {
            "unet": self.unet_config,
            "vae": self.vae_config,
            **dict(zip(TEXT, self.text_configs, strict=False)),
            **dict(zip(IMAGE, self.image_configs, strict=False)),
        }

    @property
    def text_tokens(self) -> int:
        """Number of text tokens n_t."""
        return self.text_configs[0].max_position_embeddings

    @property
    def vision_dim(self) -> int:
        """Channels of the image features that the projector takes: the channels of all towers together."""
        return sum(config.hidden_size for config in self.image_configs)

    @property
    def high_res(self) -> bool:
        """Whether the towers also see the reference at twice their size, in four parts (RealCustom++)."""
        return self.realcustom is not None and self.realcustom.projector in HIGH_RES

    def param_shapes(self) -> dict[str, Any]:
        """{component: `params` tree of shapes}; allocates no arrays."""
        return {name: self.component_shapes(name) for name in self.configs}

    def component_shapes(self, name: str) -> Any:
        """`params` tree of shapes of one component; `name` is a key of `configs`."""
        # Fields that change no parameter are reset. So models that differ only in these share one cached
        # trace, and the cache does not keep the mesh of `flash` alive.
        plain = dataclasses.replace(self, dtype=jnp.float32, vae_dtype=None, remat="none", flash=None)
        if name == "unet":
            visual_tokens = self.image_configs[0].tokens if self.image_configs else 0
            return unet_shapes(plain.unet, self.text_tokens, visual_tokens, self.vision_dim)
        if name == "vae":
            side = 2 * self.vae_config.downscale  # any size will do: parameters do not depend on it
            return param_shapes(plain.vae, _struct(1, side, side, 3))
        if name in TEXT:
            ids = jax.ShapeDtypeStruct((1, self.text_tokens), jnp.int32)
            return param_shapes(plain.text_encoders[name], ids)
        size = self.configs[name].image_size
        return param_shapes(plain.image_encoders[name], _struct(1, size, size, 3))


# Names of the text encoders and image towers, in the order of `text_configs` and `image_configs`.
TEXT = ("text_encoder", "text_encoder_2")
IMAGE = ("image_encoder", "image_encoder_2")


def _check_towers(towers: tuple[ViTConfig, ...], realcustom: RealCustomConfig) -> None:
    """Raise `UserError` if the image towers do not fit each other or the projector."""
    if not towers:
        raise UserError("RealCustom needs an image encoder: the model has no image_encoder/")
    if realcustom.projector not in FEATURES:
        known = ", ".join(FEATURES)
        raise UserError(f"realcustom/: the projector {realcustom.projector!r} is unknown; known: {known}")
    # Their features are concatenated token by token.
    if len({(tower.image_size, tower.tokens) for tower in towers}) > 1:
        sizes = ", ".join(f"{tower.image_size} ({tower.tokens} tokens)" for tower in towers)
        raise UserError(f"the image towers must take images of one size and give as many tokens; got {sizes}")
    # Local features come from the last layer, so they need no entry of their own.
    per_tower = FEATURES[realcustom.projector] - (realcustom.projector in HIGH_RES)
    layers = realcustom.feature_layers
    if len(layers) > len(towers):
        raise UserError(
            f"realcustom/ takes features of {len(layers)} image towers, but the model has {len(towers)}: "
            f"{IMAGE[len(towers)]}/ is missing"
        )
    if len(layers) != len(towers) or any(len(tower_layers) != per_tower for tower_layers in layers):
        raise UserError(
            f"the projector {realcustom.projector!r} takes {per_tower} layers of each of {len(towers)} image "
            f"towers, but feature_layers is {layers}"
        )
    for tower, tower_layers in zip(towers, layers, strict=True):
        # There are num_hidden_layers + 1 states, the input first.
        count = tower.num_hidden_layers
        if any(not -count - 1 <= layer <= count for layer in tower_layers):
            raise UserError(f"feature_layers {tower_layers}: the image tower has {count} layers")


def unet_shapes(unet: UNet, text_tokens: int, visual_tokens: int, vision_dim: int) -> Any:
    """`params` tree of shapes of a UNet.

    Args:
      unet: with or without the parts of RealCustom.
      text_tokens, visual_tokens: numbers of tokens; no parameter depends on them.
      vision_dim: channels of the image features.
    """
    c, realcustom = unet.config, unet.realcustom
    features = token_selection = pooled = time_ids = None
    if realcustom:
        features = (_struct(1, 1, visual_tokens, vision_dim),) * FEATURES[realcustom.projector]
        token_selection = TokenSelection(_struct(1), _struct(1), _struct(1))
    if c.addition_embed_type == "text_time":
        time_ids = _struct(1, 6)
        # If one is null, `misfits` reports the error of the difference.
        pooled_and_sizes = cast(int, c.projection_class_embeddings_input_dim)
        pooled = _struct(1, pooled_and_sizes - 6 * cast(int, c.addition_time_embed_dim))

    return param_shapes(
        unet,
        _struct(1, c.divisor, c.divisor, c.in_channels),
        _struct(1),
        _struct(1, text_tokens, c.cross_attention_dim),
        features,
        pooled,
        time_ids,
        token_selection,
        method=_encode_and_run,
    )


def _encode_and_run(
    unet: UNet,
    latents: Any,
    t: Any,
    text: Any,
    features: Any,
    pooled: Any,
    time_ids: Any,
    token_selection: Any,
) -> Any:
    # Both calls, because each creates parameters: projector, K and V in the first, the rest in the second.
    context = unet.encode_context(text, features, pooled=pooled, time_ids=time_ids)
    return unet(latents, t, context, token_selection=token_selection)


def _struct(*shape: int) -> Any:
    """A shape, in the place of an array of a function that is only traced."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)
