"""The latent autoencoder (AutoencoderKL of latent diffusion), with diffusers' parameter names."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.attention import merge_heads, pixel_attention, split_heads
from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.layers import Conv, Dense, Downsample, GroupNorm, ResnetBlock, Upsample


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder, with the field names of diffusers' `vae/config.json`; defaults are SD1.5's.

    `force_upcast`: the VAE needs float32 even if the other parts compute in lower precision.
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
        # Each level except the last halves the size.
        return 2 ** (len(self.block_out_channels) - 1)


class _SingleHeadAttention(nn.Module):
    """Self-attention over all pixels with one head: (B, h, w, C) → (B, h, w, C), with a skip."""

    groups: int
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        # (B, h, w, C) → (B, h·w, C)
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        q, k, v = (Dense(c, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        # one head: (B, h·w, C) → (B, h·w, 1, C)
        q, k, v = (split_heads(x, 1) for x in (q, k, v))
        y = merge_heads(pixel_attention(q, k, v, self.flash))
        return x + Dense(c, dtype=self.dtype, name="to_out_0")(y).reshape(b, h, w, c)


class _MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution: (B, h, w, C) → (B, h, w, C)."""

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
    """Residual blocks of one resolution, and the resampling to the next resolution if there is one."""

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
            # pads only at the bottom and right, as diffusers' VAE does
            x = Downsample(self.features, ((0, 1), (0, 1)), self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, self.dtype, name="upsamplers_0")(x)
        return x


class _Encoder(nn.Module):
    """Images (B, H, W, 3) → mean and log-variance of the unscaled latents, concatenated (B, h, w, 2c)."""

    config: VAEConfig
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        x = Conv(c.block_out_channels[0], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(x)
        last = len(c.block_out_channels) - 1
        for i, features in enumerate(c.block_out_channels):
            resample = "down" if i < last else None
            level = _Level(features, c.layers_per_block, c.norm_num_groups, resample, self.dtype,
                           name=f"down_blocks_{i}")  # fmt: skip
            x = level(x)
        x = _MidBlock(c, self.dtype, self.flash, name="mid_block")(x)
        x = nn.silu(GroupNorm(c.norm_num_groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        return Conv(2 * c.latent_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)


class _Decoder(nn.Module):
    """Unscaled latents (B, h, w, c) → images (B, H, W, 3)."""

    config: VAEConfig
    dtype: jnp.dtype
    flash: FlashAttention | None

    @nn.compact
    def __call__(self, z: Array) -> Array:
        c = self.config
        x = Conv(c.block_out_channels[-1], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(z)
        x = _MidBlock(c, self.dtype, self.flash, name="mid_block")(x)
        last = len(c.block_out_channels) - 1
        for i, features in enumerate(reversed(c.block_out_channels)):
            resample = "up" if i < last else None
            # one residual block more than the encoder, as in diffusers
            level = _Level(features, c.layers_per_block + 1, c.norm_num_groups, resample, self.dtype,
                           name=f"up_blocks_{i}")  # fmt: skip
            x = level(x)
        x = nn.silu(GroupNorm(c.norm_num_groups, 1e-6, self.dtype, name="conv_norm_out")(x))
        return Conv(c.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """Autoencoder between images in [-1, 1] and latents that are *already scaled* by `scaling_factor`.

    The VAE scales its latents itself, so no other code sees unscaled latents.
    """

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32
    flash: FlashAttention | None = None

    def setup(self):
        c = self.config
        self.encoder = _Encoder(c, self.dtype, self.flash)
        self.decoder = _Decoder(c, self.dtype, self.flash)
        self.quant_conv = Conv(2 * c.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = Conv(c.latent_channels, (1, 1), dtype=self.dtype)

    def moments(self, images: Array) -> tuple[Array, Array]:
        """(B, H, W, 3) in [-1, 1] → mean and log-variance of the unscaled posterior, (B, h, w, c) float32."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)  # (B, h, w, 2c) → 2 × (B, h, w, c)
        # The bounds are diffusers': exp must not overflow.
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, images: Array, key: Array | None = None) -> Array:
        """(B, H, W, 3) in [-1, 1] → scaled latents (B, h, w, c), drawn with `key`; the mean for None."""
        return self.sample(*self.moments(images), key)

    def sample(self, mean: Array, log_variance: Array, key: Array | None = None) -> Array:
        """Scaled latents (B, h, w, c) drawn from the result of `moments`; its mean if `key` is None."""
        if key is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return mean * self.config.scaling_factor

    def decode(self, latents: Array) -> Array:
        """Scaled latents (B, h, w, c) → images (B, H, W, 3) float32, roughly in [-1, 1]."""
        z = (latents / self.config.scaling_factor).astype(self.dtype)
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

    def __call__(self, images: Array, key: Array | None = None) -> tuple[Array, Array, Array]:
        """Reconstruction (B, H, W, 3), posterior mean and log-variance (B, h, w, c), for training."""
        mean, log_variance = self.moments(images)
        z = mean if key is None else mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        return self.decode(z * self.config.scaling_factor), mean, log_variance
