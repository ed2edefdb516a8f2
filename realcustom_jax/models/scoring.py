"""Adaptive scoring: which of the reference's visual tokens act, and how much (eq. 5–10)."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array


@flax.struct.dataclass
class InfluenceQuantity:
    """Traced settings of the scoring in one pass.

    Attributes:
      gamma_num: (B,) share of the visual tokens that is kept, in (0, 1].
      text_weight, visual_weight: (B,) weights of the two scores; 1−√ᾱ_t and √ᾱ_t in eq. 8. Constant weights
        give the paper's ablations: (1, 0) textual only, (0, 1) visual only, (½, ½) the mean.
    """

    gamma_num: Array
    text_weight: Array
    visual_weight: Array


# Scores are float32 also where the accelerator's default would multiply in bfloat16.
_dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)


class _Score(nn.Module):
    """Two-layer MLP: (…, N, C) → (…, N)."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(_dense(self.features, name="linear_1")(x))
        return _dense(1, name="linear_2")(x)[..., 0]


def _attentive_pool(tokens: Array, weights: Array) -> Array:
    """softmax(f W)ᵀ f over the tokens (eq. 5, 6): (B, n, C), (B, n, 1) → (B, C)."""
    weights = jax.nn.softmax(weights, axis=1)
    return jnp.einsum("bno,bnc->bc", weights, tokens, precision=jax.lax.Precision.HIGHEST)


class AdaptiveScoring(nn.Module):
    """Score visual tokens by the text and by the latents, fused by time. Everything in float32."""

    features: int

    @nn.compact
    def __call__(
        self,
        visual: Array,
        text: Array,
        latents: Array,
        quantity: InfluenceQuantity,
        present: Array | None = None,
    ) -> Array:
        """Fused, softmaxed scores S of eq. 8.

        Args:
          visual: (B, N, C_i) visual tokens f_i, the projector's output.
          text: (B, n_t, C_t) text tokens f_t.
          latents: (B, h, w, C_z) z_t, in the generation branch already times M̂.
          quantity: the weights of the two scores.
          present: (B, N) whether a token is one and not padding; None for all.

        Returns:
          (B, N), summing to 1 over the tokens; 0 for padding.
        """
        visual, text, latents = (a.astype(jnp.float32) for a in (visual, text, latents))
        pixels = latents.reshape(latents.shape[0], -1, latents.shape[-1])
        text_context = _attentive_pool(text, _dense(1, use_bias=False, name="text_attention")(text))
        visual_context = _attentive_pool(pixels, _dense(1, use_bias=False, name="visual_attention")(pixels))
        text_score = _Score(self.features, name="text_score")(_concat_context(visual, text_context))
        visual_score = _Score(self.features, name="visual_score")(_concat_context(visual, visual_context))
        fused = quantity.text_weight[:, None] * text_score + quantity.visual_weight[:, None] * visual_score
        return jax.nn.softmax(fused, axis=-1, where=present)


def _concat_context(visual: Array, context: Array) -> Array:
    """Repeat a context (B, C) to every token and concatenate: (B, N, C_i + C) (eq. 7)."""
    repeated = jnp.broadcast_to(context[:, None, :], (*visual.shape[:2], context.shape[-1]))
    return jnp.concatenate([visual, repeated], axis=-1)


def keep_top_tokens(scores: Array, gamma_num: Array, present: Array | None = None) -> Array:
    """The bias that keeps the ⌊γ_num N⌋ best tokens (eq. 10), at least one.

    A bias and not a gather, so γ_num may be traced. Of equal scores the earlier token is kept.

    Args:
      scores: (B, N).
      gamma_num: (B,) in (0, 1].
      present: (B, N) whether a token is one and not padding, which is neither counted nor kept; None for all.

    Returns:
      (B, N) float32: 0 where kept, −inf elsewhere.
    """
    count = scores.shape[-1]
    if present is not None:
        count, scores = present.sum(axis=-1).astype(jnp.float32), jnp.where(present, scores, -jnp.inf)
    # 1e-4 of a token: γ·N such as 0.7·10 must not fall to 6 by float32 rounding.
    keep = jnp.maximum(jnp.floor(gamma_num * count + 1e-4), 1.0)[:, None]
    order = jnp.argsort(-jax.lax.stop_gradient(scores), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(rank.astype(keep.dtype) < keep, 0.0, -jnp.inf)
