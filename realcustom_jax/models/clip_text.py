"""CLIP's text encoder, with the parameter names of transformers' `CLIPTextModel[WithProjection]`."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.encoder import Encoder
from realcustom_jax.models.layers import Dense, Embed, LayerNorm


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Shape of the text encoder, with the field names of transformers' config; defaults are SD1.5's.

    `with_projection` is our own field: whether the pooled text is projected (`CLIPTextModelWithProjection`).
    """

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
    """Outputs of the text encoder.

    Attributes:
      last: (B, n, C) output of the last layer after the final norm; the text tokens f_t of SD1.5.
      penultimate: (B, n, C) output of the penultimate layer without the norm; the text tokens f_t of SDXL.
      pooled: (B, C) `last` at the end-of-text token, or (B, projection_dim) if the model has a projection.
    """

    last: Array
    penultimate: Array
    pooled: Array


class _Embeddings(nn.Module):
    """Token ids (B, n) → token plus position embeddings (B, n, C)."""

    config: CLIPTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        c = self.config
        tokens = Embed(c.vocab_size, c.hidden_size, dtype=self.dtype, name="token_embedding")(ids)
        positions = Embed(
            c.max_position_embeddings, c.hidden_size, dtype=self.dtype, name="position_embedding"
        )(jnp.arange(ids.shape[1]))
        return tokens + positions


class _TextModel(nn.Module):
    """Token ids (B, n) → the last state after the final norm, and the penultimate state, each (B, n, C)."""

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
    """CLIP's text encoder: token ids (B, n) int → `TextOutput`."""

    config: CLIPTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> TextOutput:
        c = self.config
        last, penultimate = _TextModel(c, self.dtype, name="text_model")(ids)
        # The first end token of each prompt. Old configs have the wrong eos_token_id 2. Like transformers, we
        # take the highest id then, which is the end token in CLIP's vocabulary.
        end = ids == (ids.max(axis=-1, keepdims=True) if c.eos_token_id == 2 else c.eos_token_id)
        pooled = last[jnp.arange(ids.shape[0]), jnp.argmax(end, axis=-1)]  # (B, n, C) → (B, C)
        if c.with_projection:
            pooled = Dense(c.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")(pooled)
        return TextOutput(last, penultimate, pooled)
