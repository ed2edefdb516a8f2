"""Projectors: encoder features of a reference image → visual tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


class PlainProjector(nn.Module):
    """A linear layer and LayerNorm, as in the RealCustom paper: (…, N, C_in) → (…, N, features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        (tokens,) = features
        return nn.LayerNorm(dtype=self.dtype, name="norm")(
            nn.Dense(self.features, dtype=self.dtype, name="proj")(tokens)
        )
