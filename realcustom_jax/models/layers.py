"""Building blocks shared by the UNet and the VAE: GroupNorm, residual block, up- and downsampling.

Module and parameter names follow diffusers (`norm1`, `conv_shortcut`, `downsamplers_0` …), so loading its
weights is a rename and a transpose. Everything is channels last.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class LayerNorm(nn.LayerNorm):
    """Flax's, whose statistics are float32, also with parameters of less precision in strict mode."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask=mask)


class GroupNorm(nn.Module):
    """Group normalisation of (B, …, C) over everything but the batch, statistics in float32.

    The variance takes a second pass over the data: E[x²] − E[x]² loses all digits where the mean is large.
    The result is one subtraction and one multiply-add with numbers per (image, channel), which XLA fuses with
    the activation that follows; the usual reshape-normalise-reshape form prevents that on CPU.
    """

    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.reshape(x.shape[0], -1, self.groups, channels // self.groups).astype(jnp.float32)
        mean = grouped.mean(axis=(1, 3))
        variance = jnp.square(grouped - mean[:, None, :, None]).mean(axis=(1, 3))
        per_group = channels // self.groups
        gain = scale.astype(jnp.float32) * jnp.repeat(
            jax.lax.rsqrt(variance + self.eps), per_group, axis=-1
        )  # (B, C)
        centre = jnp.repeat(mean, per_group, axis=-1)
        expand = (slice(None), *(None,) * (x.ndim - 2))
        centred = x.astype(jnp.float32) - centre[expand]
        return (centred * gain[expand] + bias.astype(jnp.float32)).astype(self.dtype)


def gelu(x: Array) -> Array:
    """The exact GELU, x·Φ(x), of an array of any shape; in float32, as 1 + erf cancels where x is negative.

    `jax.nn.gelu` takes erfc, which evaluates two branches and an exponential for every element.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * 2**-0.5))).astype(x.dtype)


class ResnetBlock(nn.Module):
    """GroupNorm–SiLU–conv twice with a skip; the time embedding, where given, is added in between."""

    features: int
    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        """x: (B, h, w, C_in), emb: (B, C_emb) or None → (B, h, w, features)."""
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv1")(h)
        if emb is not None:
            shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))
            h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halve height and width with a strided convolution.

    The UNet pads by one on every side; the VAE only at the bottom and right, as diffusers does.
    """

    features: int
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Conv(self.features, (3, 3), (2, 2), self.padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv")(x)


def sinusoidal_embedding(t: Array, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0) -> Array:
    """Timestep features of DDPM: (…,) → (…, dim) float32, halves cos ‖ sin when flipped, as SD has them."""
    half = dim // 2
    exponent = -math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = t[..., None].astype(jnp.float32) * jnp.exp(exponent)
    first, second = (jnp.cos, jnp.sin) if flip_sin_to_cos else (jnp.sin, jnp.cos)
    return jnp.concatenate([first(angles), second(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Two-layer MLP over sinusoidal features."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))
