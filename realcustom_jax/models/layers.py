"""Building blocks shared by the UNet and the VAE: GroupNorm, residual block, up- and downsampling.

Module and parameter names follow diffusers (`norm1`, `conv_shortcut`, `downsamplers_0` …), so its weights
load with a rename and a transpose. All arrays are channels last.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

# A random key of this name asks for shapes alone.
SHAPES = "shapes"


class Stored:
    """Mix-in for Flax's layers: takes parameters that exist as they are, and draws none for their shapes.

    Flax traces the initialiser of each parameter at each call, to compare shapes. That is a third of the time
    that tracing a UNet takes, and the loaders have compared them. Where only shapes are wanted (`SHAPES`),
    tracing the random draws takes as long. Initialisers take a key, a shape, and perhaps a dtype.
    """

    def param(self, name: str, init: Any, *args: Any, **kwargs: Any) -> Any:
        layer: Any = self
        if layer.has_variable("params", name):
            return layer.get_variable("params", name)
        if layer.has_rng(SHAPES):
            layer.put_variable("params", name, jnp.zeros(*args))
            return layer.get_variable("params", name)
        return nn.Module.param(layer, name, init, *args, **kwargs)


class Dense(Stored, nn.Dense):
    """Flax's, without its check of shapes."""


class Conv(Stored, nn.Conv):
    """Flax's, without its check of shapes."""


class Embed(Stored, nn.Embed):
    """Flax's, without its check of shapes."""


class LayerNorm(Stored, nn.LayerNorm):
    """Flax's, whose statistics are float32, also with parameters of less precision in strict mode."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, mask=mask)


class GroupNorm(Stored, nn.Module):
    """Group normalisation of (B, …, C) over all axes except the batch, with statistics in float32."""

    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.reshape(x.shape[0], -1, self.groups, channels // self.groups).astype(jnp.float32)
        # (B, …, C) → (B, pixels, groups, C / groups) → (B, groups)
        mean = grouped.mean(axis=(1, 3))
        # A second pass over the data: E[x²] − E[x]² loses all digits if the mean is large.
        variance = jnp.square(grouped - mean[:, None, :, None]).mean(axis=(1, 3))
        per_group = channels // self.groups
        gain = scale.astype(jnp.float32) * jnp.repeat(
            jax.lax.rsqrt(variance + self.eps), per_group, axis=-1
        )  # (B, C)
        centre = jnp.repeat(mean, per_group, axis=-1)
        expand = (slice(None), *(None,) * (x.ndim - 2))  # (B, C) → (B, 1, …, 1, C)
        # One subtraction and one multiply-add with numbers per (image, channel): XLA fuses them with the
        # activation that follows. The usual reshape, normalise, reshape prevents this fusion on CPUs.
        centred = x.astype(jnp.float32) - centre[expand]
        return (centred * gain[expand] + bias.astype(jnp.float32)).astype(self.dtype)


def gelu(x: Array) -> Array:
    """Exact GELU x·Φ(x), elementwise for any shape; computed in float32, returned in the dtype of x."""
    # float32, because 1 + erf cancels for negative x. Not `jax.nn.gelu`: its erfc evaluates two branches and
    # an exponential for each element.
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * 2**-0.5))).astype(x.dtype)


class ResnetBlock(nn.Module):
    """GroupNorm–SiLU–conv twice, with a skip. A time embedding, if given, is added in between."""

    features: int
    groups: int = 32
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        """x (B, h, w, C_in) and emb (B, C_emb) or None → (B, h, w, features)."""
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm1")(x))
        h = Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv1")(h)
        if emb is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))
            h = h + shift[:, None, None, :]  # (B, C) → (B, 1, 1, C)
        h = nn.silu(GroupNorm(self.groups, self.eps, self.dtype, name="norm2")(h))
        h = Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:  # the skip must have as many channels as h
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halves height and width with a strided convolution.

    As in diffusers, the UNet pads by one pixel on each side, the VAE only at the bottom and right.
    """

    features: int
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Conv(self.features, (3, 3), (2, 2), self.padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        # (B, h, w, C) → (B, h, 2, w, 2, C) → (B, 2h, 2w, C); `jax.image.resize` would gather, which is slower
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv")(x)


def sinusoidal_embedding(t: Array, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0) -> Array:
    """Sinusoidal timestep features of DDPM (arXiv 2006.11239): (…,) → (…, dim) float32.

    Args:
      t: timesteps or other numbers.
      dim: number of features; even.
      flip_sin_to_cos: cosines first, as SD has them, and not sines.
      freq_shift: subtracted from the number of frequencies, as in diffusers.
    """
    half = dim // 2
    # frequencies from 1 to 1/10000, geometrically spaced
    exponent = -math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = t[..., None].astype(jnp.float32) * jnp.exp(exponent)
    first, second = (jnp.cos, jnp.sin) if flip_sin_to_cos else (jnp.sin, jnp.cos)
    return jnp.concatenate([first(angles), second(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Two-layer MLP over sinusoidal features: (…, C) → (…, features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))
