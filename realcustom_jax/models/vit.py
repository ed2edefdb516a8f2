"""One vision transformer for CLIP, SigLIP and DINOv2 (with or without registers)."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.encoder import Encoder
from realcustom_jax.models.layers import Conv, Dense, Embed, LayerNorm, Stored


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of an image tower; the defaults are those of CLIP ViT-L/14.

    The first fields have the names of transformers' CLIP vision config. The others are our own:

    Attributes:
      class_token: whether a class token comes first (CLIP, DINOv2; not SigLIP).
      registers: number of register tokens after the class token (DINOv2-reg: 4).
      pre_norm: whether a LayerNorm precedes the first layer (CLIP).
      patch_bias: whether the patch embedding has a bias (SigLIP, DINOv2).
      position_prefix: whether the class token has a position embedding (CLIP, DINOv2 of transformers).
      layer_scale: whether each branch has a learned scale (DINOv2).
      projection_dim: width of the projection of the pooled class token (CLIP), or None.
      image_mean, image_std: normalisation of pixels in 0…1.
      text_paired: whether image tower and text encoder were trained as a pair, so that pooled text and pooled
        image can be compared.
      logit_scale: factor on their cosine similarity (CLIP: 100).
    """

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = 768
    class_token: bool = True
    registers: int = 0
    pre_norm: bool = True
    patch_bias: bool = False
    position_prefix: bool = True
    layer_scale: bool = False
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    text_paired: bool = False
    logit_scale: float = 100.0

    @property
    def prefix(self) -> int:
        """Number of tokens before the patch tokens."""
        return int(self.class_token) + self.registers

    @property
    def tokens(self) -> int:
        """Number of patch tokens."""
        return (self.image_size // self.patch_size) ** 2


@flax.struct.dataclass
class VisionOutput:
    """Outputs of an image tower.

    Attributes:
      states: hidden states (B, prefix + n, C): the input of the first layer, then the output of each layer.
      last: (B, prefix + n, C) the last state after the final norm.
      pooled: (B, projection_dim or C) the class token after the final norm, or the mean of the tokens if
        there is no class token; projected if the tower has a projection.
    """

    states: tuple[Array, ...]
    last: Array
    pooled: Array


class _Embeddings(Stored, nn.Module):
    """Pixels (B, S, S, 3) → class token, registers and patch tokens with positions, (B, prefix + n, C)."""

    config: ViTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        c = self.config
        patch = (c.patch_size, c.patch_size)
        x = Conv(
            c.hidden_size,
            patch,
            patch,
            "VALID",
            use_bias=c.patch_bias,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        b, n = x.shape[0], x.shape[1] * x.shape[2]
        x = x.reshape(b, n, c.hidden_size)  # (B, S/p, S/p, C) → (B, n, C)
        count = n + int(c.class_token and c.position_prefix)
        embed = Embed(count, c.hidden_size, dtype=self.dtype, name="position_embedding")
        positions = embed(jnp.arange(count))
        prefix = []
        if c.class_token:
            token = self.param("class_embedding", nn.initializers.normal(0.02), (c.hidden_size,))
            if c.position_prefix:
                wider = max(token.dtype, positions.dtype, key=lambda dtype: dtype.itemsize)
                token, positions = token.astype(wider) + positions[0].astype(wider), positions[1:]
            prefix.append(jnp.broadcast_to(token.astype(self.dtype), (b, 1, c.hidden_size)))
        if c.registers:  # they have no position embedding (arXiv 2309.16588)
            shape = (c.registers, c.hidden_size)
            registers = self.param("register_tokens", nn.initializers.normal(0.02), shape)
            prefix.append(jnp.broadcast_to(registers.astype(self.dtype), (b, *shape)))
        # (B, 1, C), (B, registers, C), (B, n, C) → (B, prefix + n, C)
        return jnp.concatenate([*prefix, x + positions], axis=1)


class _VisionModel(nn.Module):
    """Pixels (B, S, S, 3) → all hidden states, and the last one after the final norm."""

    config: ViTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array) -> tuple[tuple[Array, ...], Array]:
        c = self.config
        x = _Embeddings(c, self.dtype, name="embeddings")(pixels)
        if c.pre_norm:
            x = LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="pre_layrnorm")(
                x
            )  # transformers' spelling
        states = Encoder(
            c.num_hidden_layers, c.num_attention_heads, c.intermediate_size, c.hidden_act, c.layer_norm_eps,
            layer_scale=c.layer_scale, dtype=self.dtype, name="encoder",
        )(x)  # fmt: skip
        return states, LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="post_layernorm")(states[-1])


class ViT(nn.Module):
    """Vision transformer: images (B, S, S, 3) in [-1, 1] → `VisionOutput`.

    It converts the images to its own mean and standard deviation.
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> VisionOutput:
        c = self.config
        # [-1, 1] → [0, 1], the range that mean and std refer to
        pixels = (images * 0.5 + 0.5 - jnp.asarray(c.image_mean)) / jnp.asarray(c.image_std)
        states, last = _VisionModel(c, self.dtype, name="vision_model")(pixels.astype(self.dtype))
        pooled = last[:, 0] if c.class_token else last.mean(axis=1)
        if c.projection_dim is not None:
            projection = Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection")
            pooled = projection(pooled)
        return VisionOutput(states, last, pooled)

    def features(self, images: Array, layers: tuple[int, ...]) -> tuple[Array, ...]:
        """Patch tokens of the hidden states `layers`, each (B, n, C), without the final norm."""
        # In jit, XLA removes the layers after the last one that is used.
        states = self(images).states
        return tuple(states[layer][:, self.config.prefix :] for layer in layers)
