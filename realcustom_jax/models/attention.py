"""Attention of the UNet: self-attention, and cross-attention to text and to several subjects (eq. 4 and 12).

Everything that comes from the prompt or the reference images is projected once, by `encode`, into a
`LayerContext`; a denoising step then only projects its queries.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.flash import FlashAttention


@flax.struct.dataclass
class LayerContext:
    """Keys and values of one cross-attention, computed before the sampling loop.

    Attributes:
      text_k, text_v: (B, n_t, H, D), of the text tokens.
      visual_k, visual_v: (B, R, N, H, D), of every subject's visual tokens; None in a text-only context.
    """

    text_k: Array
    text_v: Array
    visual_k: Array | None = None
    visual_v: Array | None = None


@flax.struct.dataclass
class VisualControl:
    """Where and how much each subject acts in one pass, at one resolution.

    Attributes:
      strength: (B, R, h·w), the influence scope M̂, already times the subject's 0/1 flag and its strength.
      scale: (B, R, N), the factor 1 + S on each visual token (eq. 9), or None for 1.
      bias: (B, R, N), 0 for a token that is kept and −inf for one that is not, or None to keep all.
    """

    strength: Array
    scale: Array | None = None
    bias: Array | None = None


def attention_probabilities(
    q: Array, k: Array, bias: Array | None = None, gain: Array | None = None
) -> Array:
    """softmax(gain ∘ QKᵀ/√d + bias) in float32: q (…, Q, H, D), k (…, K, H, D), others to (…, H, Q, K)."""
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    logits = logits if gain is None else logits * gain
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)


def attend(probabilities: Array, v: Array, dtype: jnp.dtype | None = None) -> Array:
    """Σ_k p_qk v_k: (…, H, Q, K) and (…, K, H, D) → (…, Q, H, D), of `dtype` or that of `v`."""
    return jnp.einsum("...hqk,...khd->...qhd", probabilities.astype(v.dtype), v, preferred_element_type=dtype)


def attention(q: Array, k: Array, v: Array, bias: Array | None = None, gain: Array | None = None) -> Array:
    """softmax(gain ∘ QKᵀ/√d + bias) (gain ∘ V), of many queries in chunks.

    Args:
      q: (…, Q, H, D), leading sizes of 1 broadcast to those of k and v.
      k, v: (…, K, H, D).
      bias, gain: broadcast to (…, H, Q, K), the same for all queries; gain is eq. 9's factor 1 + S.

    Returns:
      (…, Q, H, D), of the dtype of `v`; float32 with a gain.
    """

    def of_queries(q: Array) -> Array:
        probabilities = attention_probabilities(q, k, bias, gain)
        if gain is None:
            return attend(probabilities, v)
        shares = probabilities * gain
        if v.dtype == jnp.float32:
            return attend(shares, v)
        # S is a thousandth where there are a thousand tokens, which bfloat16 would round away. So the shares
        # are two bfloat16 numbers each. XLA may drop a cast there and back, but not `reduce_precision`.
        high = jax.lax.reduce_precision(shares, exponent_bits=8, mantissa_bits=7)
        both = jnp.concatenate([high, shares - high], axis=-1)
        return attend(both, jnp.concatenate([v, v], axis=-3), jnp.float32)

    return over_queries(of_queries, q, math.prod(k.shape[:-1]))


# Queries of a chunk: so many that their float32 logits take this many bytes.
_CHUNK_BYTES = 64 * 2**20
# From so many queries on there are chunks.
FEWEST_QUERIES = 1024


def over_queries(function: Callable[[Array], Array], q: Array, logits: int) -> Array:
    """`function` of q, from 1024 queries on chunk by chunk, so that only one chunk's probabilities exist.

    The backward pass computes each chunk's probabilities again.

    Args:
      function: (…, Q', H, D) → (…, Q', …), each query by itself.
      q: (…, Q, H, D).
      logits: how many belong to one place of Q, over the batch and all heads.
    """
    axis, count = q.ndim - 3, q.shape[-3]
    chunks = min(-(-4 * count * logits // _CHUNK_BYTES), -(-count // _FEWEST_OF_CHUNK))
    if count < FEWEST_QUERIES or chunks <= 1:
        return function(q)
    rows = -(-count // chunks)
    padding = [(0, 0)] * q.ndim
    padding[axis] = (0, chunks * rows - count)
    parts = jnp.pad(q, padding).reshape(*q.shape[:axis], chunks, rows, *q.shape[axis + 1 :])
    # Within a loop nothing can be merged with the first pass, so nothing need keep XLA from it.
    some = jax.checkpoint(function, prevent_cse=False)
    parts = jax.lax.map(some, jnp.moveaxis(parts, axis, 0))
    parts = jnp.moveaxis(parts, 0, axis)
    whole = parts.reshape(*parts.shape[:axis], chunks * rows, *parts.shape[axis + 2 :])
    return jax.lax.slice_in_dim(whole, 0, count, axis=axis)


_FEWEST_OF_CHUNK = 64


def average_attention(q: Array, k: Array) -> Array:
    """The probabilities averaged over heads: (B, Q, H, D), (B, K, H, D) → (B, Q, K) float32."""
    return over_queries(lambda q: attention_probabilities(q, k).mean(axis=-3), q, math.prod(k.shape[:-1]))


def pixel_attention(q: Array, k: Array, v: Array, flash: FlashAttention | None) -> Array:
    """softmax(QKᵀ/√d) V over pixels, all (B, N, H, D): by the kernel where it can, else `attention`."""
    return flash(q, k, v) if flash is not None and flash.takes(q) else attention(q, k, v)


def split_heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


class SelfAttention(nn.Module):
    """Multi-head self-attention over pixels, q/k/v without bias (diffusers `attn1`).

    `flash` takes over where there are many pixels.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    flash: FlashAttention | None = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(B, h·w, C) → (B, h·w, C), and the probabilities averaged over heads, (B, h·w, h·w) float32.

        The average costs nothing where the caller does not use it: XLA then leaves it out.
        """
        channels = x.shape[-1]
        q, k, v = (
            split_heads(nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x), self.heads)
            for name in ("to_q", "to_k", "to_v")
        )
        out = merge_heads(pixel_attention(q, k, v, self.flash))
        return nn.Dense(channels, dtype=self.dtype, name="to_out_0")(out), average_attention(q, k)


class CrossAttention(nn.Module):
    """Cross-attention to the text and, weighted by its mask, to each subject (diffusers `attn2`, eq. 12).

    `softmax(QKᵀ/√d) V + Σ_r M̂_r ⊙ softmax(Q K_{i,r}ᵀ/√d) V_{i,r}`, added before `to_out`.
    """

    features: int
    heads: int
    visual: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.to_q = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_k = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_v = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_out_0 = nn.Dense(self.features, dtype=self.dtype)
        if self.visual:
            self.to_k_vision = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
            self.to_v_vision = nn.Dense(self.features, use_bias=False, dtype=self.dtype)

    def encode(self, text: Array, visual: Array | None) -> LayerContext:
        """Text (B, n_t, C_t) and visual tokens (B, R, N, C_i) or None → their keys and values."""
        text_kv = [split_heads(project(text), self.heads) for project in (self.to_k, self.to_v)]
        if visual is None:
            return LayerContext(*text_kv)
        projections = (self.to_k_vision, self.to_v_vision)
        return LayerContext(*text_kv, *(split_heads(project(visual), self.heads) for project in projections))

    def __call__(
        self, x: Array, context: LayerContext, control: VisualControl | None, words: Array | None
    ) -> tuple[Array, Array | None]:
        """One pass.

        Args:
          x: (B, h·w, C) pixels.
          context: this layer's keys and values.
          control: where the subjects act; None runs text only, whatever the context holds.
          words: (B, R, n_t) 0/1 target tokens, to get the word maps; or None.

        Returns:
          (B, h·w, C), and the word maps (B, R, h·w) or None: the probability of the target words, averaged
          over heads and summed over their tokens.
        """
        q = split_heads(self.to_q(x), self.heads)
        probabilities = attention_probabilities(q, context.text_k)
        out = attend(probabilities, context.text_v)
        word_maps = None
        if words is not None:
            mean = probabilities.mean(axis=1)
            word_maps = jnp.einsum("bqk,brk->brq", mean, words, precision=jax.lax.Precision.HIGHEST)
        if control is not None:
            visual = self._visual(q, context, control)
            out = (out.astype(visual.dtype) + visual).astype(self.dtype)
        return self.to_out_0(merge_heads(out)), word_maps

    def _visual(self, q: Array, context: LayerContext, control: VisualControl) -> Array:
        # (B, R, N) → (B, R, 1, 1, N), to act on logits and probabilities (B, R, H, h·w, N)
        gain = None if control.scale is None else control.scale[:, :, None, None, :]
        bias = None if control.bias is None else control.bias[:, :, None, None, :]
        # W_K and W_V have no bias, so scaling a token (eq. 9) is scaling its logits and its share of the sum.
        per_subject = attention(q[:, None], context.visual_k, context.visual_v, bias, gain)
        # (B, R, h·w, H, D) and (B, R, h·w)
        return jnp.einsum("brqhd,brq->bqhd", per_subject, control.strength.astype(per_subject.dtype))
