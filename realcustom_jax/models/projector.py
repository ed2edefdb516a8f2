"""Projectors: encoder features of a reference image → visual tokens.

All take a tuple of feature arrays (…, N, C_in) and give (…, M, features).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.attention import attend, attention_probabilities, merge_heads, split_heads
from realcustom_jax.models.config import HIGH_RES
from realcustom_jax.models.layers import LayerNorm, gelu

# How many feature arrays each takes.
FEATURES = {"plain": 1, "deep": 2, "shallow": 5}


def make_projector(name: str, features: int, head_dim: int, dtype: jnp.dtype) -> nn.Module:
    """The projector of a name, unbound.

    Raises:
      UserError: for an unknown name.
    """
    if name == "plain":
        return PlainProjector(features, dtype)
    if name in HIGH_RES:
        return HighResProjector(features, head_dim, name == "shallow", dtype)
    raise UserError(f"projector {name!r} is unknown; known: {', '.join(FEATURES)}")


class PlainProjector(nn.Module):
    """A linear layer and LayerNorm, as in the RealCustom paper: one feature array, M = N."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        (tokens,) = features
        tokens = nn.Dense(self.features, dtype=self.dtype, name="proj")(tokens)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)


class _MinAttention(nn.Module):
    """Tokens attend to others of the same width; norms before, neither skip nor output projection."""

    head_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, other: Array) -> Array:
        """(…, N, C), (…, K, C) → (…, N, C)."""
        channels = x.shape[-1]
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        other = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(other)
        q, k, v = (
            split_heads(
                nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(tokens),
                channels // self.head_dim,
            )
            for name, tokens in (("to_q", x), ("to_k", other), ("to_v", other))
        )
        return merge_heads(attend(attention_probabilities(q, k), v))


class HighResProjector(nn.Module):
    """RealCustom++: global tokens look up detail in the tokens of the image at twice the size.

    Deep, from (global (N), local (4N)): Linear(global) + MLP(attention of global to local).
    Shallow, from (shallow 1, 2, 3, global (N each), local (4N)): Linear(global), then
    MLP(attention of global to the three shallow layers), concatenated to 2N tokens. The published network
    also holds the deep branch's weights and does not use its result; so do we, to load and save all of it.
    """

    features: int
    head_dim: int = 64
    shallow: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        *shallows, wide, local = features
        base = nn.Dense(self.features, dtype=self.dtype, name="projector_base")(wide)
        deep = self._mlp(
            "projector", _MinAttention(self.head_dim, self.dtype, name="min_attention")(wide, local)
        )
        if not self.shallow:
            return base + deep
        layers = jnp.concatenate(shallows, axis=-2)
        attended = _MinAttention(self.head_dim, self.dtype, name="min_attention2")(wide, layers)
        return jnp.concatenate([base, self._mlp("projector2", attended)], axis=-2)

    def _mlp(self, name: str, x: Array) -> Array:
        """Linear–GELU–linear–GELU–linear–LayerNorm; PyTorch's numbering counts the activations too."""
        x = nn.Dense(4 * x.shape[-1], dtype=self.dtype, name=f"{name}_0")(x)
        x = nn.Dense(self.features, dtype=self.dtype, name=f"{name}_2")(gelu(x))
        x = nn.Dense(self.features, dtype=self.dtype, name=f"{name}_4")(gelu(x))
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"{name}_5")(x)
