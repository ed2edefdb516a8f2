"""CLIP's text encoder, with the parameter names of transformers' `CLIPTextModel[WithProjection]`."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.encoder import Encoder
from realcustom_jax.models.layers import LayerNorm


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Field names and meaning of transformers' `text_encoder/config.json`; defaults are SD1.5's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768
    eos_token_id: int = 49407
    with_projection: bool = False


@flax.struct.dataclass
class TextOutput:
    """What the text encoder gives.

    Attributes:
      last: (B, n, C) after the final norm: SD1.5's text tokens f_t.
      penultimate: (B, n, C) output of the last layer but one, without the norm: SDXL's.
      pooled: (B, C) at the end-of-text token, or (B, projection_dim) when the model has a projection.
    """

    last: Array
    penultimate: Array
    pooled: Array


class _Embeddings(nn.Module):
    config: CLIPTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        c = self.config
        tokens = nn.Embed(c.vocab_size, c.hidden_size, dtype=self.dtype, name="token_embedding")(ids)
        positions = nn.Embed(
            c.max_position_embeddings, c.hidden_size, dtype=self.dtype, name="position_embedding"
        )(jnp.arange(ids.shape[1]))
        return tokens + positions


class _TextModel(nn.Module):
    config: CLIPTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids: Array) -> tuple[Array, Array]:
        c = self.config
        x = _Embeddings(c, self.dtype, name="embeddings")(ids)
        states = Encoder(
            c.num_hidden_layers, c.num_attention_heads, c.intermediate_size, c.hidden_act,
            c.layer_norm_eps, causal=True, dtype=self.dtype, name="encoder",
        )(x)  # fmt: skip
        return LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="final_layer_norm")(states[-1]), states[-2]


class CLIPText(nn.Module):
    """Token ids (B, n) int → `TextOutput`."""

    config: CLIPTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> TextOutput:
        c = self.config
        last, penultimate = _TextModel(c, self.dtype, name="text_model")(ids)
        # The end token has the highest id in CLIP's vocabulary. Old configs say eos_token_id 2, which is
        # not in any prompt; transformers looks for the highest id then, and so do we.
        end = ids == (ids.max(axis=-1, keepdims=True) if c.eos_token_id == 2 else c.eos_token_id)
        pooled = last[jnp.arange(ids.shape[0]), jnp.argmax(end, axis=-1)]
        if c.with_projection:
            pooled = nn.Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")(
                pooled
            )
        return TextOutput(last, penultimate, pooled)
