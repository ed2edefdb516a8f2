"""Adaptive scoring: scores the visual tokens of a reference and selects the best (eq. 5–8 and 10).

Eq. 9 is applied elsewhere: `_score` in models/unet.py makes the factor 1 + S, and `attention` in
models/attention.py applies it to keys and values, as `gain`.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.layers import Dense


@flax.struct.dataclass
class TokenSelection:
    """Traced settings of the scoring in one pass: how many tokens are kept, and the weights of the scores.

    Attributes:
      gamma_num: (B,) γ_num, the share of the visual tokens that is kept, in (0, 1].
      text_weight, visual_weight: (B,) weights of the two scores, 1−√ᾱ_t and √ᾱ_t in eq. 8. Constant weights
        give the ablations of the paper: (1, 0) text only, (0, 1) visual only, (½, ½) the mean.
    """

    gamma_num: Array
    text_weight: Array
    visual_weight: Array


# TPUs multiply float32 in bfloat16 by default. Tokens are ranked by their scores, so scores need full
# precision.
_dense = functools.partial(Dense, dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST)


class _Score(nn.Module):
    """Two-layer MLP: (…, N, C) → (…, N)."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(_dense(self.features, name="linear_1")(x))
        return _dense(1, name="linear_2")(x)[..., 0]


def _attentive_pool(tokens: Array, weights: Array) -> Array:
    """softmax(f W)ᵀ f over the tokens (eq. 5, 6): tokens (B, n, C), weights f W (B, n, 1) → (B, C)."""
    weights = jax.nn.softmax(weights, axis=1)
    # "o" is the output dimension 1 of W: (B, n, 1), (B, n, C) → (B, C)
    return jnp.einsum("bno,bnc->bc", weights, tokens, precision=jax.lax.Precision.HIGHEST)


class AdaptiveScoring(nn.Module):
    """Scores visual tokens by the text and by the latents, and fuses both by time. Always in float32."""

    features: int

    @nn.compact
    def __call__(
        self,
        visual: Array,
        text: Array,
        latents: Array,
        token_selection: TokenSelection,
        present: Array | None = None,
    ) -> Array:
        """Fused scores S of eq. 8, after the softmax.

        Args:
          visual: (B, N, C_i) visual tokens f_i, the projector's output.
          text: (B, n_t, C_t) text tokens f_t.
          latents: (B, h, w, C_z) z_t; in the generation branch already multiplied by M̂.
          token_selection: the weights of the two scores.
          present: (B, N) True for tokens, False for padding; None if there is no padding.

        Returns:
          (B, N), which sums to 1 over the tokens; 0 for padding.
        """
        visual, text, latents = (a.astype(jnp.float32) for a in (visual, text, latents))
        pixels = latents.reshape(latents.shape[0], -1, latents.shape[-1])  # (B, h, w, C_z) → (B, h·w, C_z)
        # C_text and C_vis of eq. 5 and 6, one vector each
        text_context = _attentive_pool(text, _dense(1, use_bias=False, name="text_attention")(text))
        visual_context = _attentive_pool(pixels, _dense(1, use_bias=False, name="visual_attention")(pixels))
        # S_text and S_vis of eq. 7: (B, N) each
        text_score = _Score(self.features, name="text_score")(_concat_context(visual, text_context))
        visual_score = _Score(self.features, name="visual_score")(_concat_context(visual, visual_context))
        fused = (
            token_selection.text_weight[:, None] * text_score
            + token_selection.visual_weight[:, None] * visual_score
        )
        return jax.nn.softmax(fused, axis=-1, where=present)


def _concat_context(visual: Array, context: Array) -> Array:
    """Repeat a context (B, C) for every token and concatenate: (B, N, C_i + C) (eq. 7)."""
    # (B, C) → (B, N, C)
    repeated = jnp.broadcast_to(context[:, None, :], (*visual.shape[:2], context.shape[-1]))
    return jnp.concatenate([visual, repeated], axis=-1)


def keep_top_tokens(scores: Array, gamma_num: Array, present: Array | None = None) -> Array:
    """Attention bias that keeps the ⌊γ_num N⌋ best tokens (eq. 10), at least one.

    Of tokens with equal scores the earlier is kept.

    Args:
      scores: (B, N).
      gamma_num: (B,) in (0, 1].
      present: (B, N) True for tokens, False for padding, which is neither counted nor kept; None if there is
        no padding.

    Returns:
      (B, N) float32: 0 for kept tokens, −inf for the others.
    """
    # A bias instead of a gather: a gather has a static size, and γ_num is traced.
    count = scores.shape[-1]
    if present is not None:
        count, scores = present.sum(axis=-1).astype(jnp.float32), jnp.where(present, scores, -jnp.inf)
    # + 1e-4: γ·N such as 0.7·10 may be just below 7 in float32, and must not become 6.
    keep = jnp.maximum(jnp.floor(gamma_num * count + 1e-4), 1.0)[:, None]
    # The rank of a token is the argsort of the argsort. It has no gradient; scores get theirs through 1 + S.
    order = jnp.argsort(-jax.lax.stop_gradient(scores), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(rank.astype(keep.dtype) < keep, 0.0, -jnp.inf)
