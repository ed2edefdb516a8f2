"""The transformer encoder shared by CLIP's text tower and all image towers; names are transformers'."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.attention import attend, attention_probabilities, merge_heads, split_heads
from realcustom_jax.models.layers import Dense, LayerNorm, Stored, gelu


def activation(name: str) -> Callable[[Array], Array]:
    """Activation function by its name in transformers.

    Raises:
      UserError: for an unknown name.
    """
    # In transformers "gelu" is the exact GELU, not the tanh approximation.
    known = {
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "gelu": gelu,
        "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    }
    if name not in known:
        raise UserError(f"activation {name!r} is unknown; known: {', '.join(known)}")
    return known[name]


class Attention(nn.Module):
    """Multi-head self-attention with biases in all projections (CLIP, SigLIP, DINOv2)."""

    heads: int
    causal: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, n, C) → (B, n, C)."""
        n, channels = x.shape[-2:]
        q, k, v = (
            split_heads(Dense(channels, dtype=self.dtype, name=f"{name}_proj")(x), self.heads)
            for name in "qkv"
        )
        # (n, n): −inf for keys after the query
        bias = jnp.where(jnp.tri(n, dtype=bool), 0.0, -jnp.inf) if self.causal else None
        out = merge_heads(attend(attention_probabilities(q, k, bias), v))
        return Dense(channels, dtype=self.dtype, name="out_proj")(out)


class MLP(nn.Module):
    """Two-layer MLP: (…, C) → (…, C)."""

    hidden: int
    act: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = activation(self.act)(Dense(self.hidden, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class EncoderLayer(Stored, nn.Module):
    """Pre-norm transformer layer. With `layer_scale`, a learned vector multiplies each branch (DINOv2)."""

    heads: int
    hidden: int
    act: str
    eps: float
    causal: bool = False
    layer_scale: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = LayerNorm(self.eps, dtype=self.dtype, name="layer_norm1")(x)
        x = x + self._scaled(
            "layer_scale1", Attention(self.heads, self.causal, self.dtype, name="self_attn")(y)
        )
        y = LayerNorm(self.eps, dtype=self.dtype, name="layer_norm2")(x)
        return x + self._scaled("layer_scale2", MLP(self.hidden, self.act, self.dtype, name="mlp")(y))

    def _scaled(self, name: str, x: Array) -> Array:
        if not self.layer_scale:
            return x
        return x * self.param(name, nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)


class Encoder(nn.Module):
    """A stack of layers. Returns its input and the output of each layer: `layers + 1` arrays (B, n, C)."""

    layers: int
    heads: int
    hidden: int
    act: str
    eps: float
    causal: bool = False
    layer_scale: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        states = [x]
        for i in range(self.layers):
            layer = EncoderLayer(self.heads, self.hidden, self.act, self.eps, self.causal, self.layer_scale,
                                 self.dtype, name=f"layers_{i}")  # fmt: skip
            states.append(layer(states[-1]))
        return tuple(states)
