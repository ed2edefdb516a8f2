"""Projectors: image encoder features of a reference → visual tokens f_i.

Each takes a tuple of feature arrays (…, N, C_in) and returns (…, M, features).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.attention import attend, attention_probabilities, merge_heads, split_heads
from realcustom_jax.models.config import HIGH_RES
from realcustom_jax.models.layers import Dense, LayerNorm, gelu

# Number of feature arrays that each projector takes: global; + local; + three shallow layers.
FEATURES = {"plain": 1, "deep": 2, "shallow": 5}


def make_projector(name: str, features: int, head_dim: int, dtype: jnp.dtype) -> nn.Module:
    """The unbound projector module of a name.

    Args:
      name: a key of `FEATURES`.
      features: channels C_i of the visual tokens.
      head_dim: channels per head of the attention; only for "deep" and "shallow".
      dtype: compute dtype.

    Raises:
      UserError: for an unknown name.
    """
    if name == "plain":
        return PlainProjector(features, dtype)
    if name in HIGH_RES:
        return HighResProjector(features, head_dim, name == "shallow", dtype)
    raise UserError(f"projector {name!r} is unknown; known: {', '.join(FEATURES)}")


class PlainProjector(nn.Module):
    """A linear layer and LayerNorm, as in the RealCustom paper; one feature array, M = N."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        (tokens,) = features
        tokens = Dense(self.features, dtype=self.dtype, name="proj")(tokens)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)


class _MinAttention(nn.Module):
    """Cross-attention of tokens of one width, as published: pre-norm, no skip, no output projection."""

    head_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, other: Array) -> Array:
        """Queries x (…, N, C) and keys and values of other (…, K, C) → (…, N, C)."""
        channels = x.shape[-1]
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        other = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(other)
        q, k, v = (
            split_heads(
                Dense(channels, use_bias=False, dtype=self.dtype, name=name)(tokens),
                channels // self.head_dim,
            )
            for name, tokens in (("to_q", x), ("to_k", other), ("to_v", other))
        )
        return merge_heads(attend(attention_probabilities(q, k), v))


class HighResProjector(nn.Module):
    """Projector of RealCustom++: global tokens attend to local tokens of the image at twice the size.

    "deep" takes (global (N), local (4N)) and returns Linear(global) + MLP(attention of global to local).
    "shallow" takes (shallow 1, 2, 3, global (N each), local (4N)). It concatenates Linear(global) and
    MLP(attention of global to the three shallow layers) to 2N tokens.
    """

    features: int
    head_dim: int = 64
    shallow: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        *shallow_layers, global_tokens, local = features
        base = Dense(self.features, dtype=self.dtype, name="projector_base")(global_tokens)
        # The published shallow network has the weights of the deep branch too, but ignores its result.
        # Computed here so that the weights load and save; XLA removes the unused computation.
        deep = self._mlp(
            "projector", _MinAttention(self.head_dim, self.dtype, name="min_attention")(global_tokens, local)
        )
        if not self.shallow:
            return base + deep
        layers = jnp.concatenate(shallow_layers, axis=-2)  # 3 × (…, N, C) → (…, 3N, C)
        attended = _MinAttention(self.head_dim, self.dtype, name="min_attention2")(global_tokens, layers)
        # (…, N, C_i), (…, N, C_i) → (…, 2N, C_i)
        return jnp.concatenate([base, self._mlp("projector2", attended)], axis=-2)

    def _mlp(self, name: str, x: Array) -> Array:
        """Linear–GELU–linear–GELU–linear–LayerNorm."""
        # The numbers are those of PyTorch's `Sequential`, which counts the activations too.
        x = Dense(4 * x.shape[-1], dtype=self.dtype, name=f"{name}_0")(x)
        x = Dense(self.features, dtype=self.dtype, name=f"{name}_2")(gelu(x))
        x = Dense(self.features, dtype=self.dtype, name=f"{name}_4")(gelu(x))
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"{name}_5")(x)
