"""The UNet passes of one denoising step: text-only with word maps, and generation with masks."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.conditioning import Conditioning
from realcustom_jax.diffusion.masks import aggregate, influence_scope, with_user_masks
from realcustom_jax.diffusion.refinement import refine, refinement_level
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.resize import resize_mask
from realcustom_jax.models.scoring import TokenSelection
from realcustom_jax.models.unet import Aux, Context, UNet

if TYPE_CHECKING:
    from realcustom_jax.options import SamplerConfig

# {scoring: √ᾱ_t → weights of the text and the visual score}. "fused" is eq. 8, the others are ablations.
_SCORE_WEIGHTS = {
    "fused": lambda alpha: (1.0 - alpha, alpha),
    "text": lambda alpha: (1.0, 0.0),
    "visual": lambda alpha: (0.0, 1.0),
    "mean": lambda alpha: (0.5, 0.5),
}
SCORINGS = (*_SCORE_WEIGHTS, "none")


@flax.struct.dataclass
class Contexts:
    """The encoded contexts of a batch, computed once before the loop.

    Attributes:
      text_only: for `paper` guidance [∅, T] stacked along the batch (2B); for `direct` T alone (B).
      subject: for `paper` guidance TI alone (B); for `direct` [neg, TI] stacked along the batch (2B).
    """

    text_only: Context
    subject: Context


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """The passes of a step, bound to everything that stays constant during the loop.

    Attributes:
      unet, schedule, config: static.
      params: the UNet's parameters.
      conditioning: the requests.
      contexts: the result of `encode_contexts` for them.
      keys: (B,) random keys, one per request, for solvers that add noise.
    """

    unet: UNet
    schedule: ScheduleConfig
    config: "SamplerConfig"
    params: Any
    conditioning: Conditioning
    contexts: Contexts
    keys: Array

    @classmethod
    def encode(
        cls,
        params: Any,
        conditioning: Conditioning,
        keys: Array,
        *,
        unet: UNet,
        schedule: ScheduleConfig,
        config: "SamplerConfig",
    ) -> "Denoiser":
        """Encode the contexts of a batch and bind them. Arguments as in `sample_latents`."""
        contexts = encode_contexts(unet, params, conditioning, config.guidance)
        return cls(unet, schedule, config, params, conditioning, contexts, keys)

    @property
    def has_subjects(self) -> bool:
        return self.conditioning.flags.shape[1] > 0

    def text_only(self, x: Array, t: Array, *, empty: bool, maps: bool) -> tuple[Array | None, Array, Aux]:
        """The guidance branch: ε_∅ and ε_T (B, h, w, C), and the word maps of the T pass.

        Args:
          x: (B, h, w, C) latents.
          t: timestep ().
          empty: whether to run the ∅ pass too, in one batch with T. Without it ε_∅ is None.
          maps: whether to collect word maps and, for refinement, self-attention.
        """
        words, context = self.conditioning.words, self.contexts.text_only
        if empty:
            # [∅, T], (2B, …): one pass of 2B reads the weights once, two passes of B twice
            x, words = repeat_batch(x), repeat_batch(words)
        elif self.config.guidance == "paper":
            context = second_half(context)  # the context is [∅, T], but only T runs
        level = self._refinement_level if maps else None
        e, aux = self._apply(x, t, context, words=words if maps else None, self_attention_level=level)
        if not empty:
            return None, e, aux
        e_empty, e_text = jnp.split(e, 2)  # (2B, …) → 2 × (B, …)
        # The word maps of the empty prompt mean nothing.
        return e_empty, e_text, jax.tree.map(second_half, aux) if maps else aux

    def generate(
        self, x: Array, t: Array, alpha: Array, masks: Array, *, negative: bool
    ) -> tuple[Array | None, Array, Aux]:
        """The generation branch: ε_neg and ε_TI (B, h, w, C), and the token scores of the TI pass.

        Args:
          x: (B, h, w, C) latents.
          t: timestep ().
          alpha: √ᾱ_t ().
          masks: (B, R, h', w') influence scopes M̂.
          negative: whether to run the negative pass too, in one batch with TI. Without it ε_neg is None.
        """
        # RealCustom++ gives the negative pass the same masks and token selection as TI.
        context, selection = self.contexts.subject, self.token_selection(alpha)
        if negative:
            selection, masks, x = jax.tree.map(repeat_batch, (selection, masks, x))  # [neg, TI], (2B, …)
        elif self.config.guidance == "direct":
            context = second_half(context)
        e, aux = self._apply(
            x, t, context, masks=masks if self.has_subjects else None, token_selection=selection
        )
        if not negative:
            return None, e, aux
        e_negative, e_subject = jnp.split(e, 2)  # (2B, …) → 2 × (B, …)
        return e_negative, e_subject, jax.tree.map(second_half, aux)

    def _apply(self, x: Array, t: Array, *args: Any, **kwargs: Any) -> tuple[Array, Aux]:
        t = jnp.broadcast_to(t, (len(x),))
        return _apply_unet(self.unet, self.params, x, t, *args, **kwargs)

    def token_selection(self, alpha: Array) -> TokenSelection | None:
        """Settings of the token scoring at √ᾱ_t = alpha (); None keeps all tokens unscaled."""
        if self.config.scoring == "none" or not self.has_subjects:
            return None
        gamma = self.conditioning.settings.gamma_num
        text, visual = _SCORE_WEIGHTS[self.config.scoring](alpha)
        return TokenSelection(gamma, jnp.full_like(gamma, text), jnp.full_like(gamma, visual))

    def word_maps(self, aux: Aux) -> Array:
        """Word maps (B, R, h', w') of the guidance branch: averaged over layers, normalised, refined.

        Raises:
          UserError: if `mask_layers` names a cross-attention that the UNet does not have.
        """
        config = self.config
        layers = range(len(aux.word_maps)) if config.mask_layers is None else config.mask_layers
        if max(layers) >= len(aux.word_maps):
            raise UserError(
                f"mask_layers {tuple(layers)}: this UNet has {len(aux.word_maps)} cross-attentions, from 0"
            )
        chosen = [aux.word_maps[layer] for layer in layers]
        maps = aggregate(chosen, config.mask_height, config.mask_width, config.mask_normalisation)
        if (level := self._refinement_level) is not None:
            assert aux.self_attention is not None
            latents = (config.height, config.width)
            maps = refine(maps, aux.self_attention, latents, level, config.mask_normalisation)
        return maps

    def new_masks(self, maps: Array) -> Array:
        """Influence scopes M̂ (B, R, h', w') of `word_maps` (eq. 11); 0 for absent subjects."""
        c, config = self.conditioning, self.config
        # A subject with a user mask that replaces the guided mask must not take pixels by its word map.
        guided = c.present * (1.0 - c.replace_guided)
        masks = influence_scope(
            maps, c.settings.gamma_scope, config.mask_kind, config.mask_overlap, present=guided
        )
        return with_user_masks(masks, c.user_masks, c.present * c.replace_guided, config.mask_overlap)

    def subject_region(self, masks: Array) -> Array:
        """Where ω_i multiplies ε_TI − ε_T: bool (B, h, w, 1) pixels, or (B, 1, 1, 1) whole images.

        False for an image in which no subject acts.
        """
        # Without an acting subject ε_TI − ε_T is only rounding error, which ω_i = 12.5 would amplify.
        if self.config.guidance_scope == "image":
            return masks.max(axis=(1, 2, 3))[:, None, None, None] > 0  # (B, R, h', w') → (B, 1, 1, 1)
        height, width = self.config.height, self.config.width
        # union of the subjects' masks: (B, R, h', w') → (B, 1, h, w) → (B, h, w, 1)
        return resize_mask(masks.max(axis=1, keepdims=True), height, width)[:, 0, :, :, None] > 0

    @property
    def _refinement_level(self) -> int | None:
        """UNet level whose self-attention refines the masks; None without refinement."""
        c = self.config
        if c.mask_refine == "none":
            return None
        return refinement_level(self.unet.config, (c.height, c.width), (c.mask_height, c.mask_width))


# Tracing a UNet takes seconds. The phases of a loop trace equal passes; within `jit` they are traced once.
@functools.partial(jax.jit, static_argnames=("unet", "self_attention_level"))
def _apply_unet(unet: UNet, params: Any, *args: Any, **kwargs: Any) -> tuple[Array, Aux]:
    outputs: Any = unet.apply({"params": params}, *args, **kwargs)
    return outputs


def encode_contexts(unet: UNet, params: Any, conditioning: Conditioning, guidance: str) -> Contexts:
    """Encode all contexts of a batch, once before the loop.

    Args:
      unet, params: the UNet and its parameters.
      conditioning: the requests.
      guidance: "paper" or "direct".
    """
    c = conditioning
    encode: Any = functools.partial(unet.apply, {"params": params}, method=UNet.encode_context)
    has_subjects = c.flags.shape[1] > 0
    features, negative_features = (c.features, c.negative_features) if has_subjects else (None, None)
    shared = (c.present, c.strengths)
    # The negative pass sees one black photo, even if the subject has several photos.
    one = None if c.photos is None else c.photos.at[..., 1:].set(0.0)
    weights = c.token_weights
    subject = encode(c.text, features, *shared, c.pooled, c.time_ids, c.photos, weights)
    negative = encode(
        c.negative_text, negative_features, *shared, c.negative_pooled, c.time_ids, one, weights
    )
    # Stacked here, once: stacking inside the loop would copy all keys and values at each step.
    if guidance == "paper":
        return Contexts(_stack(negative.text_only(), subject.text_only()), subject)
    return Contexts(subject.text_only(), _stack(negative, subject))


def _stack(first: Context, second: Context) -> Context:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def second_half(tree: Any) -> Any:
    """Second of two stacked batches: (2B, …) → (B, …) in every leaf."""
    return jax.tree.map(lambda x: x[len(x) // 2 :], tree)


def repeat_batch(x: Array) -> Array:
    """Two copies stacked along the batch: (B, …) → (2B, …)."""
    return jnp.concatenate([x, x])
