"""Attention of the UNet: self-attention, and cross-attention to text and to several subjects (eq. 4 and 12).

Keys and values depend only on the prompt and the reference images. `encode` computes them once, as a
`LayerContext`. A denoising step then only projects its queries.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.flash import FlashAttention
from realcustom_jax.models.layers import Dense


@flax.struct.dataclass
class LayerContext:
    """Keys and values of one cross-attention, computed before the sampling loop.

    Attributes:
      text_k, text_v: (B, n_t, H, D) of the text tokens; H heads of D channels.
      visual_k, visual_v: (B, R, N, H, D) of the visual tokens of each subject; None in a text-only context.
    """

    text_k: Array
    text_v: Array
    visual_k: Array | None = None
    visual_v: Array | None = None

    def weighted(self, weights: Array) -> "LayerContext":
        """The same context with each visual token's value multiplied by its weight (B, R, N)."""
        assert self.visual_v is not None  # a text-only context has no visual tokens
        values = self.visual_v.astype(jnp.float32) * weights[..., None, None]
        return dataclasses.replace(self, visual_v=values.astype(self.visual_v.dtype))


@flax.struct.dataclass
class VisualControl:
    """Where and how much each subject acts in one pass, at one resolution.

    Attributes:
      strength: (B, R, h·w) influence scope M̂, multiplied by the subject's 0/1 flag and its strength.
      scale: (B, R, N) factor 1 + S on each visual token (eq. 9); None for 1.
      bias: (B, R, N) 0 for a kept token, −inf for a dropped one; None to keep all.
    """

    strength: Array
    scale: Array | None = None
    bias: Array | None = None


def attention_probabilities(
    q: Array, k: Array, bias: Array | None = None, gain: Array | None = None
) -> Array:
    """softmax(gain ∘ QKᵀ/√d + bias) over the keys, in float32.

    Args:
      q: (…, Q, H, D).
      k: (…, K, H, D).
      bias, gain: broadcast to (…, H, Q, K).

    Returns:
      (…, H, Q, K) float32.
    """
    # bfloat16 products, accumulated in float32: logits need the digits that bfloat16 does not have.
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    logits = logits if gain is None else logits * gain
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)


def attend(probabilities: Array, v: Array, dtype: jnp.dtype | None = None) -> Array:
    """Σ_k p_qk v_k: (…, H, Q, K) and (…, K, H, D) → (…, Q, H, D), in `dtype` or the dtype of `v`."""
    return jnp.einsum("...hqk,...khd->...qhd", probabilities.astype(v.dtype), v, preferred_element_type=dtype)


def attention(q: Array, k: Array, v: Array, bias: Array | None = None, gain: Array | None = None) -> Array:
    """softmax(gain ∘ QKᵀ/√d + bias) (gain ∘ V), in chunks if there are many queries.

    Args:
      q: (…, Q, H, D). Leading axes of size 1 broadcast to those of k and v.
      k, v: (…, K, H, D).
      bias, gain: broadcast to (…, H, Q, K), equal for all queries. `gain` is the factor 1 + S of eq. 9.

    Returns:
      (…, Q, H, D) in the dtype of `v`, or in float32 with a gain.
    """

    def attend_queries(q: Array) -> Array:
        probabilities = attention_probabilities(q, k, bias, gain)
        if gain is None:
            return attend(probabilities, v)
        shares = probabilities * gain
        if v.dtype == jnp.float32:
            return attend(shares, v)
        # With a thousand tokens S is about 1/1000, and bfloat16 rounds 1 + S to 1. So each share is the sum
        # of two bfloat16 numbers. `reduce_precision` instead of a cast: XLA may remove a cast to bfloat16 and
        # back.
        high = jax.lax.reduce_precision(shares, exponent_bits=8, mantissa_bits=7)
        # (…, H, Q, 2K) and (…, 2K, H, D): one matrix product sums both halves
        both = jnp.concatenate([high, shares - high], axis=-1)
        return attend(both, jnp.concatenate([v, v], axis=-3), jnp.float32)

    return over_queries(attend_queries, q, math.prod(k.shape[:-1]))


# Size of a chunk: its float32 logits take at most this many bytes.
_CHUNK_BYTES = 64 * 2**20
# Fewer queries than this run in one piece.
MIN_CHUNKED_QUERIES = 1024
# Smaller chunks would leave the matrix unit idle.
_MIN_CHUNK_QUERIES = 64


def over_queries(function: Callable[[Array], Array], q: Array, logits: int) -> Array:
    """Apply `function` to q, in chunks if there are 1024 queries or more.

    Only the probabilities of one chunk are in memory at a time. The backward pass computes the probabilities
    of each chunk again.

    Args:
      function: (…, Q', H, D) → (…, Q', …); the result of a query depends on that query only.
      q: (…, Q, H, D).
      logits: number of logits per query position, over the batch, all heads and all keys.
    """
    axis, count = q.ndim - 3, q.shape[-3]
    # 4 bytes per float32 logit; −(−a // b) rounds up
    chunks = min(-(-4 * count * logits // _CHUNK_BYTES), -(-count // _MIN_CHUNK_QUERIES))
    if count < MIN_CHUNKED_QUERIES or chunks <= 1:
        return function(q)
    rows = -(-count // chunks)
    padding = [(0, 0)] * q.ndim
    padding[axis] = (0, chunks * rows - count)
    # (…, Q, H, D) → (…, chunks, rows, H, D); the scan needs equal chunks, so the last is padded
    parts = jnp.pad(q, padding).reshape(*q.shape[:axis], chunks, rows, *q.shape[axis + 1 :])
    # XLA cannot merge operations across loop iterations, so the barriers of `prevent_cse` are not needed.
    rematerialised = jax.checkpoint(function, prevent_cse=False)
    parts = jax.lax.map(rematerialised, jnp.moveaxis(parts, axis, 0))
    parts = jnp.moveaxis(parts, 0, axis)
    # (…, chunks, rows, …) → (…, chunks·rows, …) → (…, Q, …)
    whole = parts.reshape(*parts.shape[:axis], chunks * rows, *parts.shape[axis + 2 :])
    return jax.lax.slice_in_dim(whole, 0, count, axis=axis)


def average_attention(q: Array, k: Array) -> Array:
    """Probabilities averaged over heads: (B, Q, H, D), (B, K, H, D) → (B, Q, K) float32."""
    # mean over axis −3, the heads: (B, H, Q, K) → (B, Q, K)
    return over_queries(lambda q: attention_probabilities(q, k).mean(axis=-3), q, math.prod(k.shape[:-1]))


def pixel_attention(q: Array, k: Array, v: Array, flash: FlashAttention | None) -> Array:
    """softmax(QKᵀ/√d) V over pixels, all (B, N, H, D): with the kernel if it supports q, else `attention`."""
    return flash(q, k, v) if flash is not None and flash.supports(q) else attention(q, k, v)


def split_heads(x: Array, heads: int) -> Array:
    """(…, N, H·D) → (…, N, H, D)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """(…, N, H, D) → (…, N, H·D)."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


class SelfAttention(nn.Module):
    """Multi-head self-attention over pixels, q/k/v without bias (diffusers `attn1`).

    With many pixels the kernel `flash` computes it.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    flash: FlashAttention | None = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(B, h·w, C) → (B, h·w, C), and the probabilities averaged over heads, (B, h·w, h·w) float32."""
        channels = x.shape[-1]
        q, k, v = (
            split_heads(Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x), self.heads)
            for name in ("to_q", "to_k", "to_v")
        )
        out = merge_heads(pixel_attention(q, k, v, self.flash))
        # The average is free if the caller ignores it: XLA removes unused computation.
        return Dense(channels, dtype=self.dtype, name="to_out_0")(out), average_attention(q, k)


class CrossAttention(nn.Module):
    """Cross-attention to the text and, weighted by masks, to each subject (diffusers `attn2`, eq. 12).

    `softmax(QKᵀ/√d) V + Σ_r M̂_r ⊙ softmax(Q K_{i,r}ᵀ/√d) V_{i,r}`; `to_out` projects the sum.
    """

    features: int
    heads: int
    visual: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.to_q = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_k = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_v = Dense(self.features, use_bias=False, dtype=self.dtype)
        self.to_out_0 = Dense(self.features, dtype=self.dtype)
        # W_Ki and W_Vi have no bias. `_attend_subjects` relies on it.
        if self.visual:
            self.to_k_vision = Dense(self.features, use_bias=False, dtype=self.dtype)
            self.to_v_vision = Dense(self.features, use_bias=False, dtype=self.dtype)

    def encode(self, text: Array, visual: Array | None) -> LayerContext:
        """Text tokens (B, n_t, C_t) and visual tokens (B, R, N, C_i) or None → their keys and values."""
        # (B, n_t, C_t) → (B, n_t, H, D), and (B, R, N, C_i) → (B, R, N, H, D)
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
          control: where the subjects act. None ignores the subjects of the context.
          words: (B, R, n_t) 0/1 target tokens, to get word maps; or None.

        Returns:
          (B, h·w, C), and the word maps (B, R, h·w) or None. A word map is the probability of the target
          words, averaged over heads and summed over their tokens.
        """
        q = split_heads(self.to_q(x), self.heads)
        # Not in chunks: there are only 77 text tokens, and the word maps need the probabilities.
        probabilities = attention_probabilities(q, context.text_k)  # (B, H, h·w, n_t)
        out = attend(probabilities, context.text_v)
        word_maps = None
        if words is not None:
            mean = probabilities.mean(axis=1)  # over heads → (B, h·w, n_t)
            # Full precision: pixels are ranked by these values, also on TPUs, which default to bfloat16.
            word_maps = jnp.einsum("bqk,brk->brq", mean, words, precision=jax.lax.Precision.HIGHEST)
        if control is not None:
            visual = self._attend_subjects(q, context, control)
            out = (out.astype(visual.dtype) + visual).astype(self.dtype)
        return self.to_out_0(merge_heads(out)), word_maps

    def _attend_subjects(self, q: Array, context: LayerContext, control: VisualControl) -> Array:
        """Σ_r M̂_r ⊙ softmax(Q K_{i,r}ᵀ/√d) V_{i,r} of eq. 12: q (B, h·w, H, D) → the same shape."""
        assert context.visual_k is not None and context.visual_v is not None
        # (B, R, N) → (B, R, 1, 1, N), to broadcast to logits and probabilities (B, R, H, h·w, N)
        gain = None if control.scale is None else control.scale[:, :, None, None, :]
        bias = None if control.bias is None else control.bias[:, :, None, None, :]
        # W_Ki and W_Vi have no bias, so scaling a token f_i by 1 + S (eq. 9) scales its key and its value.
        # Keys and values can then be computed before the loop, although S changes at each step.
        per_subject = attention(q[:, None], context.visual_k, context.visual_v, bias, gain)
        # sum over subjects: (B, R, h·w, H, D), (B, R, h·w) → (B, h·w, H, D)
        return jnp.einsum("brqhd,brq->bqhd", per_subject, control.strength.astype(per_subject.dtype))
