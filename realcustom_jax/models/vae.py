"""The latent autoencoder (AutoencoderKL of latent diffusion), with diffusers' parameter names."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.attention import merge_heads, pixel_attention, split_heads
from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.layers import Downsample, GroupNorm, ResnetBlock, Upsample


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; field names and meaning are those of diffusers' `vae/config.json`.

    `force_upcast` says that the VAE needs float32, where the other parts compute in less.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512
    force_upcast: bool = True

    @property
    def downscale(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class _SingleHeadAttention(nn.Module):
    """Self-attention over all pixels with one head, between the two residual blocks of the middle."""

    groups: int
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        q, k, v = (nn.Dense(c, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        y = merge_heads(pixel_attention(*(split_heads(x, 1) for x in (q, k, v)), self.flash))
        return x + nn.Dense(c, dtype=self.dtype, name="to_out_0")(y).reshape(b, h, w, c)


class _MidBlock(nn.Module):
    config: VAEConfig
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups, features = self.config.norm_num_groups, self.config.block_out_channels[-1]
        x = ResnetBlock(features, groups, 1e-6, self.dtype, name="resnets_0")(x)
        x = _SingleHeadAttention(groups, self.dtype, self.flash, name="attentions_0")(x)
        return ResnetBlock(features, groups, 1e-6, self.dtype, name="resnets_1")(x)


class _Level(nn.Module):
    """Residual blocks of one resolution and, unless it is the last, the change to the next one."""

    features: int
    layers: int
    groups: int
    resample: str | None  # "down", "up" or None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = ResnetBlock(self.features, self.groups, 1e-6, self.dtype, name=f"resnets_{i}")(x)
        if self.resample == "down":
            x = Downsample(self.features, ((0, 1), (0, 1)), self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, self.dtype, name="upsamplers_0")(x)
        return x


class _Encoder(nn.Module):
    config: VAEConfig
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        x = nn.Conv(c.block_out_channels[0], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(x)
        last = len(c.block_out_channels) - 1
        for i, features in enumerate(c.block_out_channels):
            resample = "down" if i < last else None
            level = _Level(features, c.layers_per_block, c.norm_num_groups, resample, self.dtype,
                           name=f"down_blocks_{i}")  # fmt: skip
            x = level(x)
        x = _MidBlock(c, self.dtype, self.flash, name="mid_block")(x)
        x = nn.silu(GroupNorm(c.norm_num_groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        return nn.Conv(2 * c.latent_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)


class _Decoder(nn.Module):
    config: VAEConfig
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, z: Array) -> Array:
        c = self.config
        x = nn.Conv(c.block_out_channels[-1], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(z)
        x = _MidBlock(c, self.dtype, self.flash, name="mid_block")(x)
        last = len(c.block_out_channels) - 1
        for i, features in enumerate(reversed(c.block_out_channels)):
            resample = "up" if i < last else None
            level = _Level(features, c.layers_per_block + 1, c.norm_num_groups, resample, self.dtype,
                           name=f"up_blocks_{i}")  # fmt: skip
            x = level(x)
        x = nn.silu(GroupNorm(c.norm_num_groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        return nn.Conv(c.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """Images in [-1, 1] ↔ latents that are *already scaled* by `scaling_factor`.

    Scaling lives here, so that nothing outside ever sees an unscaled latent.
    """

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32
    flash: FlashAttention | None = None

    def setup(self):
        c = self.config
        self.encoder = _Encoder(c, self.dtype, self.flash)
        self.decoder = _Decoder(c, self.dtype, self.flash)
        self.quant_conv = nn.Conv(2 * c.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(c.latent_channels, (1, 1), dtype=self.dtype)

    def moments(self, images: Array) -> tuple[Array, Array]:
        """(B, H, W, 3) in [-1, 1] → mean and log-variance of the unscaled posterior, (B, h, w, c) float32."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, images: Array, key: Array | None = None) -> Array:
        """(B, H, W, 3) in [-1, 1] → scaled latents (B, h, w, c); the posterior's mean without a key."""
        return self.sample(*self.moments(images), key)

    def sample(self, mean: Array, log_variance: Array, key: Array | None = None) -> Array:
        """What `moments` gives → scaled latents (B, h, w, c) drawn from it; its mean without a key."""
        if key is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return mean * self.config.scaling_factor

    def decode(self, latents: Array) -> Array:
        """Scaled latents (B, h, w, c) → images (B, H, W, 3), float32, about [-1, 1]."""
        z = (latents / self.config.scaling_factor).astype(self.dtype)
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

    def __call__(self, images: Array, key: Array | None = None) -> tuple[Array, Array, Array]:
        """Reconstruction with the posterior's mean and log-variance: what VAE training needs, in one call."""
        mean, log_variance = self.moments(images)
        z = mean if key is None else mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return self.decode(z * self.config.scaling_factor), mean, log_variance
